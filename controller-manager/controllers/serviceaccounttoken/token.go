package serviceaccounttoken

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/keyutil"
)

const issuer = "kubernetes/serviceaccount"

// claims are what a token kept in a Secret says. It has no end: it is good for as
// long as the account and the Secret are there.
type claims struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub"`
	Namespace string `json:"kubernetes.io/serviceaccount/namespace"`
	Secret    string `json:"kubernetes.io/serviceaccount/secret.name"`
	Account   string `json:"kubernetes.io/serviceaccount/service-account.name"`
	UID       string `json:"kubernetes.io/serviceaccount/service-account.uid"`
}

// signer makes tokens with one private key.
type signer struct{ jose.Signer }

// readSigner reads a PEM private key, RSA or ECDSA.
func readSigner(file string) (*signer, error) {
	key, err := keyutil.PrivateKeyFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("--service-account-private-key-file: %w", err)
	}
	s, err := newSigner(key)
	if err != nil {
		return nil, fmt.Errorf("--service-account-private-key-file %s: %w", file, err)
	}
	return s, nil
}

// newSigner picks the algorithm by the key. Source: RFC 7518, section 3.1. The key's
// ID is the digest of its public half, by which the API server's key set names it.
func newSigner(key any) (*signer, error) {
	var alg jose.SignatureAlgorithm
	switch k := key.(type) {
	case *rsa.PrivateKey:
		alg = jose.RS256
	case *ecdsa.PrivateKey:
		switch bits := k.Curve.Params().BitSize; bits {
		case 256:
			alg = jose.ES256
		case 384:
			alg = jose.ES384
		case 521:
			alg = jose.ES512
		default:
			return nil, fmt.Errorf("a curve of %d bits is not supported", bits)
		}
	default:
		return nil, fmt.Errorf("a key of type %T cannot sign tokens; use RSA or ECDSA", key)
	}
	der, err := x509.MarshalPKIXPublicKey(key.(crypto.Signer).Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	kid := base64.RawURLEncoding.EncodeToString(sum[:])
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid, Algorithm: string(alg)}}, nil)
	if err != nil {
		return nil, err
	}
	return &signer{s}, nil
}

func (s *signer) token(a *corev1.ServiceAccount, secret string) (string, error) {
	return jwt.Signed(s).Claims(claims{
		Issuer: issuer, Subject: "system:serviceaccount:" + a.Namespace + ":" + a.Name,
		Namespace: a.Namespace, Secret: secret, Account: a.Name, UID: string(a.UID),
	}).Serialize()
}
