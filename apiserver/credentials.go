package apiserver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/resources"
)

// connKey finds the identity of the connection in a request's context.
type connKey struct{}

// identity is who the peer of a TLS connection has proved to be. A certificate is
// verified once per connection and minute, not once per request: checking a
// signature costs more than most requests.
type identity struct {
	mu    sync.Mutex // guards what follows
	until time.Time
	user  *authn.User
	ok    bool
}

const identityLife = time.Minute

func withIdentity(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &identity{})
}

// remembered is an authenticator by client certificate that asks inner once per connection and minute.
type remembered struct {
	inner authn.Authenticator
	now   func() time.Time
	lives prometheus.Observer // how long certificates are still good; nil: nobody asks
}

func (a remembered) Authenticate(r *http.Request) (*authn.User, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false, nil
	}
	id, _ := r.Context().Value(connKey{}).(*identity)
	if id == nil {
		return a.inner.Authenticate(r)
	}
	now := a.now()
	id.mu.Lock()
	defer id.mu.Unlock()
	if now.Before(id.until) {
		return id.user, id.ok, nil
	}
	user, ok, err := a.inner.Authenticate(r)
	if err != nil {
		return user, ok, err
	}
	if ok && a.lives != nil {
		a.lives.Observe(r.TLS.PeerCertificates[0].NotAfter.Sub(now).Seconds())
	}
	until := now.Add(identityLife)
	if end := r.TLS.PeerCertificates[0].NotAfter; end.Before(until) {
		until = end
	}
	id.user, id.ok, id.until = user, ok, until
	return user, ok, nil
}

// roots is a file of authorities that is read again when it has changed, looked at
// once every ten seconds. The last good content stays in use.
type roots struct {
	file string

	mu   sync.Mutex // guards what follows
	pool *x509.CertPool
	text []byte
	mod  time.Time
	next time.Time
}

func newRoots(file string) (*roots, error) {
	r := &roots{file: file}
	return r, r.read()
}

func (r *roots) read() error {
	info, err := os.Stat(r.file)
	if err != nil {
		return err
	}
	if r.pool != nil && info.ModTime().Equal(r.mod) {
		return nil
	}
	text, err := os.ReadFile(r.file)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return fmt.Errorf("%s: no PEM certificate found", r.file)
	}
	r.pool, r.text, r.mod = pool, text, info.ModTime()
	return nil
}

func (r *roots) get() *x509.CertPool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.After(r.next) {
		r.next = now.Add(10 * time.Second)
		_ = r.read() // what was read before is used on
	}
	return r.pool
}

// tokenUsed notes the day in the Secret that holds a token. A request does not fail because it cannot be noted.
func (s *server) tokenUsed(secret *corev1.Secret, day string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.api.Update(ctx, schema.GroupResource{Resource: "secrets"}, "", secret.Namespace, secret.Name, func(o resources.Object) (resources.Object, error) {
		if o.GetUID() != secret.UID {
			return o, nil
		}
		next := o.DeepCopyObject().(resources.Object)
		labels := maps.Clone(o.GetLabels())
		if labels == nil {
			labels = map[string]string{}
		}
		labels[authn.LastUsed] = day
		next.SetLabels(labels)
		return next, nil
	})
	if err != nil {
		s.log.Warn("the last use of a service account's token could not be noted", "secret", secret.Namespace+"/"+secret.Name, "err", err)
	}
}

// reviewer checks a token for a TokenReview with the authenticators of bearer tokens.
func reviewer(accounts *authn.ServiceAccounts, others []authn.Authenticator) func(context.Context, string, []string) (*authn.User, []string, error) {
	return func(ctx context.Context, token string, audiences []string) (*authn.User, []string, error) {
		u, good, ok, err := accounts.Check(token, audiences)
		if err != nil {
			return nil, nil, fmt.Errorf("[invalid bearer token, %w]", err)
		}
		if !ok {
			r := (&http.Request{Header: http.Header{"Authorization": {"Bearer " + token}}}).WithContext(ctx)
			for _, a := range others {
				if u, ok, err = a.Authenticate(r); ok || err != nil {
					break
				}
			}
			good = audiences
		}
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("[invalid bearer token, %w]", err)
		case !ok:
			return nil, nil, errors.New("invalid bearer token")
		}
		c := *u
		c.Groups = append([]string(nil), u.Groups...)
		if !c.In(authn.GroupAuthenticated) {
			c.Groups = append(c.Groups, authn.GroupAuthenticated)
		}
		return &c, good, nil
	}
}
