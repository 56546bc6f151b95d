package authn

import (
	"crypto/subtle"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

// BootstrapTokens authenticates joining machines by "<id>.<secret>" tokens kept
// as Secrets kube-system/bootstrap-token-<id>.
//
// Source: Kubernetes documentation, "Authenticating with Bootstrap Tokens".
type BootstrapTokens struct {
	Read resources.Reader
	Now  func() time.Time
}

var bootstrapToken = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)

// Authenticate compares in constant time.
func (b BootstrapTokens) Authenticate(r *http.Request) (*User, bool, error) {
	token, ok := Bearer(r)
	if !ok {
		return nil, false, nil
	}
	m := bootstrapToken.FindStringSubmatch(token)
	if m == nil {
		return nil, false, nil
	}
	secret, err := resources.Lookup[corev1.Secret](b.Read, grSecrets, "kube-system", "bootstrap-token-"+m[1])
	if err != nil {
		return nil, false, err
	}
	bad := errors.New("bootstrap token is unknown, expired or not meant for authentication")
	if secret == nil || secret.DeletionTimestamp != nil || secret.Type != corev1.SecretTypeBootstrapToken ||
		subtle.ConstantTimeCompare(secret.Data["token-secret"], []byte(m[2])) != 1 ||
		string(secret.Data["token-id"]) != m[1] || string(secret.Data["usage-bootstrap-authentication"]) != "true" {
		return nil, false, bad
	}
	if exp := string(secret.Data["expiration"]); exp != "" {
		t, err := time.Parse(time.RFC3339, exp)
		if err != nil || !b.Now().Before(t) {
			return nil, false, bad
		}
	}
	u := &User{Name: "system:bootstrap:" + m[1], Groups: []string{"system:bootstrappers"}}
	for _, g := range strings.Split(string(secret.Data["auth-extra-groups"]), ",") {
		if g = strings.TrimSpace(g); strings.HasPrefix(g, "system:bootstrappers:") {
			u.Groups = append(u.Groups, g)
		}
	}
	return u, true, nil
}
