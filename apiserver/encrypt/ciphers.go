package encrypt

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"

	"golang.org/x/crypto/nacl/secretbox"
)

// sealedPrefix is reserved: no plain value begins with it. Protobuf values begin with
// "k8s\x00", JSON with "{".
var sealedPrefix = []byte("k8s:enc:")

var (
	errShort   = errors.New("the value is too short")
	errForeign = errors.New("it was sealed with another key, or is damaged")
)

// identity leaves values plain.
type identity struct{}

var plainOnly = []provider{identity{}}

func (identity) prefix() string         { return "" }
func (identity) owns(value []byte) bool { return !bytes.HasPrefix(value, sealedPrefix) }

func (identity) seal(_ context.Context, plain, _ []byte) ([]byte, error) { return plain, nil }

func (identity) open(_ context.Context, value, _ []byte) ([]byte, bool, error) {
	return value, false, nil
}

// named is what providers with keys have in common.
type named string

func (n named) prefix() string         { return string(n) }
func (n named) owns(value []byte) bool { return bytes.HasPrefix(value, []byte(n)) }

// gcm: nonce (12 bytes), sealed text and tag, with the etcd key authenticated.
type gcm struct {
	named
	aead cipher.AEAD
}

func newGCM(name string, secret []byte) (provider, error) {
	aead, err := aead(secret)
	return gcm{named("k8s:enc:aesgcm:v1:" + name + ":"), aead}, err
}

func aead(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (p gcm) seal(_ context.Context, plain, aad []byte) ([]byte, error) {
	return gcmSeal(p.aead, nil, plain, aad), nil
}

func (p gcm) open(_ context.Context, sealed, aad []byte) ([]byte, bool, error) {
	plain, err := gcmOpen(p.aead, sealed, aad)
	return plain, false, err
}

// gcmSeal appends to out. Random nonces of 96 bits are good for 2^32 values of one key: hence
// key rotation, and the derived keys of KMS.
func gcmSeal(a cipher.AEAD, out, plain, aad []byte) []byte {
	nonce := make([]byte, a.NonceSize(), a.NonceSize()+len(plain)+a.Overhead())
	_, _ = rand.Read(nonce) // never fails
	return append(out, a.Seal(nonce, nonce, plain, aad)...)
}

func gcmOpen(a cipher.AEAD, sealed, aad []byte) ([]byte, error) {
	n := a.NonceSize()
	if len(sealed) < n {
		return nil, errShort
	}
	plain, err := a.Open(nil, sealed[:n], sealed[n:], aad)
	if err != nil {
		return nil, errForeign
	}
	return plain, nil
}

// cbc: initialization vector (16 bytes), then blocks padded as PKCS #7 says. Nothing is
// authenticated; it is here for clusters that use it.
type cbc struct {
	named
	block cipher.Block
}

func newCBC(name string, secret []byte) (provider, error) {
	block, err := aes.NewCipher(secret)
	return cbc{named("k8s:enc:aescbc:v1:" + name + ":"), block}, err
}

func (p cbc) seal(_ context.Context, plain, _ []byte) ([]byte, error) {
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	out := make([]byte, aes.BlockSize, aes.BlockSize+len(plain)+pad)
	_, _ = rand.Read(out)
	out = append(append(out, plain...), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(p.block, out[:aes.BlockSize]).CryptBlocks(out[aes.BlockSize:], out[aes.BlockSize:])
	return out, nil
}

func (p cbc) open(_ context.Context, sealed, _ []byte) ([]byte, bool, error) {
	if len(sealed) < 2*aes.BlockSize || len(sealed)%aes.BlockSize != 0 {
		return nil, false, errShort
	}
	out := make([]byte, len(sealed)-aes.BlockSize)
	cipher.NewCBCDecrypter(p.block, sealed[:aes.BlockSize]).CryptBlocks(out, sealed[aes.BlockSize:])
	pad := int(out[len(out)-1])
	if pad == 0 || pad > aes.BlockSize || !bytes.Equal(out[len(out)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
		return nil, false, errForeign
	}
	return out[:len(out)-pad], false, nil
}

// box: nonce (24 bytes), then XSalsa20 and Poly1305.
type box struct {
	named
	key [32]byte
}

func newSecretbox(name string, secret []byte) (provider, error) {
	return box{named("k8s:enc:secretbox:v1:" + name + ":"), [32]byte(secret)}, nil
}

func (p box) seal(_ context.Context, plain, _ []byte) ([]byte, error) {
	var nonce [24]byte
	_, _ = rand.Read(nonce[:])
	return secretbox.Seal(nonce[:], plain, &nonce, &p.key), nil
}

func (p box) open(_ context.Context, sealed, _ []byte) ([]byte, bool, error) {
	if len(sealed) < 24+secretbox.Overhead {
		return nil, false, errShort
	}
	plain, ok := secretbox.Open(nil, sealed[24:], (*[24]byte)(sealed[:24]), &p.key)
	if !ok {
		return nil, false, errForeign
	}
	return plain, false, nil
}
