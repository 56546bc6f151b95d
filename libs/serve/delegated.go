package serve

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	allowedFor  = 30 * time.Second
	deniedFor   = 5 * time.Second
	maxAnswers  = 1024 // of each cache; when it is full the old answers go
	maxHoldings = 16 << 10
)

// Reviewer asks the API server who a caller is and what the caller may do.
//
// Answers are kept for 30 seconds when they are yes and 5 when they are no, up to a bound. Without
// the API server nobody but holders of verified certificates is known, and nobody is allowed.
type Reviewer struct {
	c   kubernetes.Interface
	cas *authorities
	err error // of the CA file, given to every caller

	mu      sync.Mutex // guards the maps
	users   map[[32]byte]answer[*authenticationv1.UserInfo]
	allowed map[string]answer[error]
}

type answer[T any] struct {
	value T
	until time.Time
}

// NewReviewer reads the CA file, if one is given. A bad file is told to every caller of Authenticate.
func NewReviewer(c kubernetes.Interface, clientCAFile string) *Reviewer {
	cas, err := newAuthorities(clientCAFile)
	return &Reviewer{
		c: c, cas: cas, err: err,
		users:   map[[32]byte]answer[*authenticationv1.UserInfo]{},
		allowed: map[string]answer[error]{},
	}
}

// Authenticate tells who sent r: by client certificate, else by bearer token (TokenReview).
// ErrUnauthenticated when neither is good.
func (v *Reviewer) Authenticate(r *http.Request) (*authenticationv1.UserInfo, error) {
	if v.err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnauthenticated, v.err)
	}
	if cert, err := v.cas.verify(r); err == nil {
		return &authenticationv1.UserInfo{Username: cert.Subject.CommonName, Groups: append([]string{"system:authenticated"}, cert.Subject.Organization...)}, nil
	}
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if token = strings.TrimSpace(token); !ok || !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxHoldings {
		return nil, ErrUnauthenticated
	}
	key, now := sha256.Sum256([]byte(token)), time.Now()
	v.mu.Lock()
	a, ok := v.users[key]
	v.mu.Unlock()
	if !ok || now.After(a.until) {
		ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
		defer cancel()
		review, err := v.c.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("%w: the API server could not be asked about the token", ErrUnauthenticated)
		}
		a = answer[*authenticationv1.UserInfo]{until: now.Add(deniedFor)}
		if review.Status.Authenticated {
			a = answer[*authenticationv1.UserInfo]{&review.Status.User, now.Add(allowedFor)}
		}
		v.mu.Lock()
		keep(v.users, key, a, now)
		v.mu.Unlock()
	}
	if a.value == nil {
		return nil, ErrUnauthenticated
	}
	return a.value, nil
}

// Allowed returns nil when user may do what spec says (its user fields are filled in here), else an
// error for the user. Exactly one of spec's attributes must be set.
func (v *Reviewer) Allowed(ctx context.Context, user *authenticationv1.UserInfo, spec authorizationv1.SubjectAccessReviewSpec) error {
	spec.User, spec.Groups, spec.UID = user.Username, user.Groups, user.UID
	if len(user.Extra) > 0 {
		spec.Extra = map[string]authorizationv1.ExtraValue{}
		for k, e := range user.Extra {
			spec.Extra[k] = authorizationv1.ExtraValue(e)
		}
	}
	key, now := spec.String(), time.Now()
	v.mu.Lock()
	a, ok := v.allowed[key]
	v.mu.Unlock()
	if ok && now.Before(a.until) {
		return a.value
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	review, err := v.c.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("the API server could not be asked what user %q may do: %w", user.Username, err)
	}
	a = answer[error]{nil, now.Add(allowedFor)}
	if !review.Status.Allowed {
		a = answer[error]{fmt.Errorf("Forbidden (user=%s, %s)", user.Username, wish(spec)), now.Add(deniedFor)}
	}
	v.mu.Lock()
	keep(v.allowed, key, a, now)
	v.mu.Unlock()
	return a.value
}

func wish(s authorizationv1.SubjectAccessReviewSpec) string {
	if a := s.NonResourceAttributes; a != nil {
		return fmt.Sprintf("verb=%s, path=%s", a.Verb, a.Path)
	}
	a := s.ResourceAttributes
	return fmt.Sprintf("verb=%s, resource=%s, subresource(s)=[%s]", a.Verb, a.Resource, a.Subresource)
}

// keep stores an answer; a full cache first loses what has run out, then everything.
func keep[K comparable, V any](m map[K]answer[V], k K, a answer[V], now time.Time) {
	if len(m) >= maxAnswers {
		for old, e := range m {
			if now.After(e.until) {
				delete(m, old)
			}
		}
		if len(m) >= maxAnswers {
			clear(m)
		}
	}
	m[k] = a
}

// Delegated admits whom the API server lets read the path: TokenReview (or a certificate signed by the
// CA) says who it is, SubjectAccessReview on the path with the verb of the method says whether it may.
func Delegated(c kubernetes.Interface, clientCAFile string) func(r *http.Request) error {
	v := NewReviewer(c, clientCAFile)
	return func(r *http.Request) error {
		user, err := v.Authenticate(r)
		if err != nil {
			return err
		}
		return v.Allowed(r.Context(), user, authorizationv1.SubjectAccessReviewSpec{
			NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: r.URL.Path, Verb: strings.ToLower(r.Method)},
		})
	}
}
