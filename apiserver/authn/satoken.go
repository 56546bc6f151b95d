package authn

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/apiserver/resources"
)

// Bound names an object that a token depends on: when the object is gone, so is the token.
type Bound struct {
	Name string    `json:"name"`
	UID  types.UID `json:"uid,omitempty"`
}

// Claims are what a service account token says. Source: the "kubernetes.io"
// claim set of bound tokens, and the "kubernetes.io/serviceaccount/..." claims
// of tokens kept in Secrets.
type Claims struct {
	jwt.Claims
	Private struct {
		Namespace      string           `json:"namespace,omitempty"`
		ServiceAccount Bound            `json:"serviceaccount,omitzero"`
		Pod            *Bound           `json:"pod,omitempty"`
		Secret         *Bound           `json:"secret,omitempty"`
		Node           *Bound           `json:"node,omitempty"`
		WarnAfter      *jwt.NumericDate `json:"warnafter,omitempty"`
	} `json:"kubernetes.io,omitzero"`

	LegacyNamespace  string `json:"kubernetes.io/serviceaccount/namespace,omitempty"`
	LegacyName       string `json:"kubernetes.io/serviceaccount/service-account.name,omitempty"`
	LegacyUID        string `json:"kubernetes.io/serviceaccount/service-account.uid,omitempty"`
	LegacySecretName string `json:"kubernetes.io/serviceaccount/secret.name,omitempty"`
}

// ServiceAccounts signs and checks service account tokens. The zero value has no keys.
type ServiceAccounts struct {
	Issuer    string
	Audiences []string // accepted by this server; default: the issuer
	Keys      []PublicKey
	Signer    crypto.Signer // nil: tokens cannot be issued here
	Read      resources.Reader
	Now       func() time.Time

	// Used notes in a Secret the day (UTC) on which its token was used; nil: nobody wants to know.
	// It is called when the Secret names another day, from the goroutine of the request.
	Used func(secret *corev1.Secret, day string)

	Metrics *TokenMetrics // nil: none

	mu       sync.Mutex
	verified map[string]*Claims // guarded by mu; signature already checked; at most maxVerified
}

const maxVerified = 4096

// ServiceAccountName is the user name of a service account.
func ServiceAccountName(namespace, name string) string {
	return "system:serviceaccount:" + namespace + ":" + name
}

// NodeNameKey is the extra field which says what node the service account's pod runs on.
const NodeNameKey = "authentication.kubernetes.io/node-name"

// SplitServiceAccount is the inverse of ServiceAccountName. ok is false for what cannot be a service account.
func SplitServiceAccount(user string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, "system:serviceaccount:")
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, ":")
	if !ok || len(validation.ValidateNamespaceName(namespace, false)) > 0 || len(validation.ValidateServiceAccountName(name, false)) > 0 {
		return "", "", false
	}
	return namespace, name, true
}

// Issue signs a token for a service account. bound, if any, has exactly one of
// Pod, Secret or Node set (a pod's node may accompany it). stale, if not zero, is after what time its holder
// should use another.
func (s *ServiceAccounts) Issue(sa *corev1.ServiceAccount, audiences []string, life, stale time.Duration, pod, secret, node *Bound) (string, time.Time, error) {
	if s.Signer == nil {
		return "", time.Time{}, errors.New("this server issues no tokens: --service-account-signing-key-file is not set")
	}
	alg, err := algorithm(s.Signer.Public())
	if err != nil {
		return "", time.Time{}, err
	}
	kid, err := keyID(s.Signer.Public())
	if err != nil {
		return "", time.Time{}, err
	}
	sg, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: s.Signer, KeyID: kid, Algorithm: string(alg)}}, nil)
	if err != nil {
		return "", time.Time{}, err
	}
	now := s.Now()
	var c Claims
	c.Issuer, c.Subject = s.Issuer, ServiceAccountName(sa.Namespace, sa.Name)
	c.Audience, c.ID = audiences, uuid.NewString()
	c.IssuedAt, c.NotBefore, c.Expiry = jwt.NewNumericDate(now), jwt.NewNumericDate(now), jwt.NewNumericDate(now.Add(life))
	c.Private.Namespace, c.Private.ServiceAccount = sa.Namespace, Bound{Name: sa.Name, UID: sa.UID}
	if stale > 0 {
		c.Private.WarnAfter = jwt.NewNumericDate(now.Add(stale))
	}
	c.Private.Pod, c.Private.Secret, c.Private.Node = pod, secret, node
	// Audiences are a list also where there is one: clients read them as such.
	token, err := jwt.Signed(sg).Claims(c).Claims(map[string]any{"aud": audiences}).Serialize()
	return token, c.Expiry.Time(), err
}

// Authenticate takes the bearer token of the request, if it looks like one of this issuer.
func (s *ServiceAccounts) Authenticate(r *http.Request) (*User, bool, error) {
	token, ok := Bearer(r)
	if !ok || strings.Count(token, ".") != 2 {
		return nil, false, nil
	}
	u, _, ok, err := s.Check(token, s.accepted())
	return u, ok, err
}

func (s *ServiceAccounts) accepted() []string {
	if len(s.Audiences) > 0 {
		return s.Audiences
	}
	return []string{s.Issuer}
}

// Bearer is the token of the Authorization header, or of a WebSocket
// subprotocol, where browsers must put it.
//
// Source: Kubernetes documentation, "base64url.bearer.authorization.k8s.io.".
func Bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if ok && strings.EqualFold(scheme, "bearer") {
		token = strings.TrimSpace(token)
		return token, token != ""
	}
	return websocketToken(r)
}

// Check verifies a token for any of the audiences and returns which of them it
// is good for. ok is false when the token is another issuer's.
func (s *ServiceAccounts) Check(token string, audiences []string) (u *User, good []string, ok bool, err error) {
	c, ok, err := s.verify(token)
	if !ok || err != nil {
		return nil, nil, ok, err
	}
	now := s.Now()
	if err := c.Claims.ValidateWithLeeway(jwt.Expected{Time: now}, 0); err != nil {
		if errors.Is(err, jwt.ErrExpired) {
			return nil, nil, true, errors.New("service account token has expired")
		}
		return nil, nil, true, fmt.Errorf("service account token: %w", err)
	}
	if c.LegacyName != "" {
		u, err = s.legacy(token, c)
		return u, audiences, true, err
	}
	for _, a := range audiences {
		if slices.Contains(c.Audience, a) {
			good = append(good, a)
		}
	}
	if len(good) == 0 {
		return nil, nil, true, fmt.Errorf("token audiences %q is invalid for the target audiences %q", []string(c.Audience), audiences)
	}
	if u, err = s.bound(c); err != nil {
		return nil, good, true, err
	}
	if after := c.Private.WarnAfter; after != nil {
		late := now.After(after.Time())
		s.Metrics.bound(late)
		if late {
			u.Noted = &Note{Key: "authentication.k8s.io/stale-token",
				Value: fmt.Sprintf("subject: %s, seconds after warning threshold: %d", c.Subject, now.Unix()-after.Time().Unix())}
		}
	}
	return u, good, true, nil
}

// verify checks issuer and signature; the result is kept, as the same token comes with every request.
func (s *ServiceAccounts) verify(token string) (*Claims, bool, error) {
	s.mu.Lock()
	c := s.verified[token]
	s.mu.Unlock()
	if c != nil {
		return c, true, nil
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512})
	if err != nil {
		return nil, false, nil
	}
	var claimed Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&claimed); err != nil {
		return nil, false, nil
	}
	legacy := claimed.Issuer == "kubernetes/serviceaccount"
	if claimed.Issuer != s.Issuer && !legacy {
		return nil, false, nil
	}
	c = &Claims{}
	kid := ""
	if len(parsed.Headers) > 0 {
		kid = parsed.Headers[0].KeyID
	}
	ok := false
	for _, k := range s.Keys {
		if kid != "" && kid != k.ID {
			continue
		}
		if parsed.Claims(k.Key, c) == nil {
			ok = true
			break
		}
	}
	if !ok {
		return nil, true, errors.New("service account token: signature does not match any key of --service-account-key-file")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.verified == nil || len(s.verified) >= maxVerified {
		s.verified = map[string]*Claims{} // rare and cheap to fill again
	}
	s.verified[token] = c
	return c, true, nil
}

var (
	grServiceAccounts = schema.GroupResource{Resource: "serviceaccounts"}
	grSecrets         = schema.GroupResource{Resource: "secrets"}
	grPods            = schema.GroupResource{Resource: "pods"}
	grNodes           = schema.GroupResource{Resource: "nodes"}
)

// Labels of Secrets that hold a token: since when it is out of use, and on what day it was used last.
//
// Source: Kubernetes documentation, "Well-Known Labels, Annotations and Taints".
const (
	invalidSince = "kubernetes.io/legacy-token-invalid-since"
	LastUsed     = "kubernetes.io/legacy-token-last-used"
)

// grace is how long tokens that were issued for a time outlive the deletion of what they are bound to: who holds one may
// be busy with its own end.
const grace = 60 * time.Second

// account returns the live service account, which must still be the one that the token was made for.
func (s *ServiceAccounts) account(namespace, name string, uid types.UID, grace time.Duration) (*corev1.ServiceAccount, error) {
	sa, err := resources.Lookup[corev1.ServiceAccount](s.Read, grServiceAccounts, namespace, name)
	if err != nil {
		return nil, err
	}
	if sa == nil || sa.UID != uid || s.ended(sa, grace) {
		return nil, fmt.Errorf("service account %s/%s has been deleted", namespace, name)
	}
	return sa, nil
}

// ended: obj has been on its way out for longer than the grace.
func (s *ServiceAccounts) ended(obj resources.Object, grace time.Duration) bool {
	t := obj.GetDeletionTimestamp()
	return t != nil && s.Now().After(t.Add(grace))
}

func (s *ServiceAccounts) bound(c *Claims) (*User, error) {
	p := &c.Private
	if _, err := s.account(p.Namespace, p.ServiceAccount.Name, p.ServiceAccount.UID, grace); err != nil {
		return nil, err
	}
	u := serviceAccountUser(p.Namespace, p.ServiceAccount.Name, p.ServiceAccount.UID)
	u.Extra = map[string][]string{"authentication.kubernetes.io/credential-id": {"JTI=" + c.ID}}
	alive := func(gr schema.GroupResource, namespace string, b *Bound) (resources.Object, error) {
		obj, err := s.Read.Get(gr, namespace, b.Name)
		if err != nil {
			return nil, err
		}
		if obj == nil || obj.GetUID() != b.UID {
			return nil, fmt.Errorf("service account token is bound to %s %q, which has been deleted", gr.Resource, b.Name)
		}
		if s.ended(obj, grace) {
			return nil, fmt.Errorf("service account token is bound to %s %q, which is being deleted", gr.Resource, b.Name)
		}
		return obj, nil
	}
	if p.Secret != nil {
		if _, err := alive(grSecrets, p.Namespace, p.Secret); err != nil {
			return nil, err
		}
	}
	if p.Pod != nil {
		if _, err := alive(grPods, p.Namespace, p.Pod); err != nil {
			return nil, err
		}
		u.Extra["authentication.kubernetes.io/pod-name"] = []string{p.Pod.Name}
		u.Extra["authentication.kubernetes.io/pod-uid"] = []string{string(p.Pod.UID)}
	}
	if p.Node != nil {
		if p.Pod == nil {
			if _, err := alive(grNodes, "", p.Node); err != nil {
				return nil, err
			}
		}
		u.Extra[NodeNameKey] = []string{p.Node.Name}
		if p.Node.UID != "" {
			u.Extra["authentication.kubernetes.io/node-uid"] = []string{string(p.Node.UID)}
		}
	}
	return u, nil
}

// legacy checks a token that lives in a Secret of type kubernetes.io/service-account-token.
func (s *ServiceAccounts) legacy(token string, c *Claims) (*User, error) {
	sa, err := s.account(c.LegacyNamespace, c.LegacyName, types.UID(c.LegacyUID), 0)
	if err != nil {
		return nil, err
	}
	secret, err := resources.Lookup[corev1.Secret](s.Read, grSecrets, c.LegacyNamespace, c.LegacySecretName)
	if err != nil {
		return nil, err
	}
	if secret == nil || secret.DeletionTimestamp != nil || string(secret.Data[corev1.ServiceAccountTokenKey]) != token {
		return nil, fmt.Errorf("service account token: secret %s/%s does not hold it any more", c.LegacyNamespace, c.LegacySecretName)
	}
	s.used(secret)
	if secret.Labels[invalidSince] != "" {
		s.Metrics.invalid()
		err := fmt.Errorf("the token in secret %s/%s for service account %s/%s has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '%s' label from the secret to temporarily allow use of this token",
			secret.Namespace, secret.Name, sa.Namespace, sa.Name, invalidSince)
		return nil, &NotedError{err, Note{Key: "authentication.k8s.io/legacy-token-invalidated", Value: secret.Name + "/" + secret.Namespace}}
	}
	auto := slices.ContainsFunc(sa.Secrets, func(r corev1.ObjectReference) bool { return r.Name == secret.Name })
	s.Metrics.legacy(auto)
	u := serviceAccountUser(c.LegacyNamespace, c.LegacyName, types.UID(c.LegacyUID))
	u.Noted = &Note{Key: "authentication.k8s.io/legacy-token-manual-secret", Value: secret.Name}
	if auto {
		u.Noted.Key = "authentication.k8s.io/legacy-token-autogenerated-secret"
		u.Noted.Warning = "Use tokens from the TokenRequest API or manually created secret-based tokens instead of auto-generated secret-based tokens."
	}
	return u, nil
}

// used tells what day it is if the secret says another. Tomorrow counts as today: servers' clocks differ.
func (s *ServiceAccounts) used(secret *corev1.Secret) {
	now := s.Now().UTC()
	today, tomorrow := now.Format(time.DateOnly), now.AddDate(0, 0, 1).Format(time.DateOnly)
	if last := secret.Labels[LastUsed]; s.Used != nil && last != today && last != tomorrow {
		s.Used(secret, today)
	}
}

func serviceAccountUser(namespace, name string, uid types.UID) *User {
	return &User{Name: ServiceAccountName(namespace, name), UID: string(uid), Groups: ServiceAccountGroups(namespace)}
}

// ServiceAccountGroups are the groups that every service account of a namespace is in.
func ServiceAccountGroups(namespace string) []string {
	return []string{GroupServiceAccounts, GroupServiceAccounts + ":" + namespace}
}

// Discovery returns the OpenID provider configuration and the key set (RFC 7517)
// with which others verify the tokens. base is the URL of this server.
func (s *ServiceAccounts) Discovery(base string) (config, keys []byte, err error) {
	set := jose.JSONWebKeySet{}
	algs := []string{}
	for _, k := range s.Keys {
		alg, err := algorithm(k.Key)
		if err != nil {
			return nil, nil, err
		}
		if !slices.Contains(algs, string(alg)) {
			algs = append(algs, string(alg))
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Key, KeyID: k.ID, Algorithm: string(alg), Use: "sig"})
	}
	if keys, err = json.Marshal(set); err != nil {
		return nil, nil, err
	}
	config, err = json.Marshal(map[string]any{
		"issuer": s.Issuer, "jwks_uri": base + "/openid/v1/jwks",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": algs,
	})
	return config, keys, err
}
