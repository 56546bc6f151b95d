package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/go-jose/go-jose/v4"
)

// PublicKey is one key that service account tokens may be signed with.
type PublicKey struct {
	ID  string // the token's "kid": base64url of the SHA-256 of the PKIX form
	Key crypto.PublicKey
}

// LoadPublicKeys reads the public keys (or the public halves of private keys, or
// certificates) of a PEM file.
func LoadPublicKeys(file string) ([]PublicKey, error) {
	blocks, err := pemBlocks(file)
	if err != nil {
		return nil, err
	}
	var out []PublicKey
	for _, b := range blocks {
		var key any
		switch b.Type {
		case "PUBLIC KEY":
			key, err = x509.ParsePKIXPublicKey(b.Bytes)
		case "RSA PUBLIC KEY":
			key, err = x509.ParsePKCS1PublicKey(b.Bytes)
		case "CERTIFICATE":
			var c *x509.Certificate
			if c, err = x509.ParseCertificate(b.Bytes); err == nil {
				key = c.PublicKey
			}
		case "EC PARAMETERS":
			continue
		default:
			var s crypto.Signer
			if s, err = parsePrivate(b); err == nil {
				key = s.Public()
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: PEM block %q: %w", file, b.Type, err)
		}
		id, err := keyID(key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		out = append(out, PublicKey{ID: id, Key: key})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no public key found; expected PEM blocks such as PUBLIC KEY or RSA PRIVATE KEY", file)
	}
	return out, nil
}

// LoadPrivateKey reads the first private key of a PEM file.
func LoadPrivateKey(file string) (crypto.Signer, error) {
	blocks, err := pemBlocks(file)
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		if b.Type == "EC PARAMETERS" {
			continue
		}
		s, err := parsePrivate(b)
		if err != nil {
			return nil, fmt.Errorf("%s: PEM block %q: %w", file, b.Type, err)
		}
		return s, nil
	}
	return nil, fmt.Errorf("%s: no private key found", file)
}

func pemBlocks(file string) ([]*pem.Block, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []*pem.Block
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return out, nil
		}
		out = append(out, b)
	}
}

func parsePrivate(b *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch b.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(b.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	default:
		return nil, errors.New("not a key")
	}
	if err != nil {
		return nil, err
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return s, nil
}

func keyID(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("public key of type %T: %w", key, err)
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// algorithm is the JWS algorithm for a key. Source: RFC 7518, section 3.1.
func algorithm(key crypto.PublicKey) (jose.SignatureAlgorithm, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return jose.RS256, nil
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return jose.ES256, nil
		case 384:
			return jose.ES384, nil
		case 521:
			return jose.ES512, nil
		}
		return "", fmt.Errorf("service account key: unsupported curve %s", k.Curve.Params().Name)
	}
	return "", fmt.Errorf("service account key: unsupported type %T; use RSA or ECDSA", key)
}
