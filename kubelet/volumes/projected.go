package volumes

import (
	"context"
	"errors"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

var projected = Type{
	Plugin:   "kubernetes.io~projected",
	InMemory: true,
	Match:    func(q *request) bool { return q.volume.Projected != nil },
	Content: func(ctx context.Context, q *request) (payload, time.Time, error) {
		all := payload{}
		var next time.Time
		var faults []error
		defaultMode := mode(q.volume.Projected.DefaultMode)
		for _, source := range q.volume.Projected.Sources {
			p, again, err := q.source(ctx, source, defaultMode)
			if err != nil {
				faults = append(faults, err)
				continue
			}
			next = earlier(next, again)
			for path, f := range p {
				all[path] = f
			}
		}
		return all, next, utilerrors.NewAggregate(faults)
	},
}

func (q *request) source(ctx context.Context, s corev1.VolumeProjection, defaultMode int32) (payload, time.Time, error) {
	never := time.Time{}
	switch {
	case s.ConfigMap != nil:
		p, err := q.configMapFiles(ctx, s.ConfigMap.Name, s.ConfigMap.Items, defaultMode, yes(s.ConfigMap.Optional))
		return p, never, err
	case s.Secret != nil:
		p, err := q.secretFiles(ctx, s.Secret.Name, s.Secret.Items, defaultMode, yes(s.Secret.Optional))
		return p, never, err
	case s.DownwardAPI != nil:
		p, err := q.downwardFiles(s.DownwardAPI.Items, defaultMode)
		return p, never, err
	case s.ServiceAccountToken != nil:
		t, err := q.token(ctx, s.ServiceAccountToken, time.Now())
		if err != nil {
			return nil, never, err
		}
		f := file{data: []byte(t.value), mode: defaultMode, user: q.onlyUser()}
		if f.user != nil || q.fsGroup() != nil {
			f.mode = 0o600
		}
		return payload{s.ServiceAccountToken.Path: f}, t.refresh, nil
	case s.ClusterTrustBundle != nil:
		return nil, never, errors.New("clusterTrustBundle projections are not supported by this node")
	case s.PodCertificate != nil:
		return nil, never, errors.New("podCertificate projections are not supported by this node")
	}
	return payload{}, never, nil
}

type tokenKey struct {
	audience string
	seconds  int64
}

// token is a credential of the pod's service account, bound to the pod.
type token struct {
	value            string
	refresh, expires time.Time
}

// tokenMaxAge is when a token is replaced at the latest, however long it is valid.
// Source: Kubernetes documentation, "Managing Service Accounts": the kubelet replaces a
// token that is older than 80 percent of its life, or older than 24 hours.
const tokenMaxAge = 24 * time.Hour

// token returns a token that is good for a while. When the API server cannot be reached
// the old one is used up to its end.
func (q *request) token(ctx context.Context, s *corev1.ServiceAccountTokenProjection, now time.Time) (token, error) {
	seconds := int64(3600)
	if s.ExpirationSeconds != nil {
		seconds = *s.ExpirationSeconds
	}
	key := tokenKey{s.Audience, seconds}
	old, had := q.state.tokens[key]
	if had && now.Before(old.refresh) {
		return old, nil
	}
	fresh, err := q.requestToken(ctx, s.Audience, seconds, now)
	switch {
	case err == nil:
		q.state.tokens[key] = fresh
		return fresh, nil
	case had && now.Before(old.expires):
		old.refresh = now.Add(30 * time.Second)
		q.state.tokens[key] = old
		return old, nil
	case had:
		return token{}, fmt.Errorf("token of service account %s/%s expired and refresh failed: %w", q.pod.Namespace, q.account(), err)
	}
	return token{}, fmt.Errorf("failed to fetch token: %w", err)
}

func (q *request) account() string {
	if q.pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return q.pod.Spec.ServiceAccountName
}

func (q *request) requestToken(ctx context.Context, audience string, seconds int64, now time.Time) (token, error) {
	if q.manager.client == nil {
		return token{}, errors.New("there is no API server to ask")
	}
	ask := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: q.pod.Name, UID: q.pod.UID},
	}}
	if audience != "" {
		ask.Spec.Audiences = []string{audience}
	}
	answer, err := q.manager.client.CoreV1().ServiceAccounts(q.pod.Namespace).CreateToken(ctx, q.account(), ask, metav1.CreateOptions{})
	if err != nil {
		return token{}, err
	}
	t := token{value: answer.Status.Token, expires: answer.Status.ExpirationTimestamp.Time}
	t.refresh = refreshAt(now, t.expires)
	return t, nil
}

// refreshAt is 80 % into a token's life, or a day.
func refreshAt(issued, expires time.Time) time.Time {
	life := expires.Sub(issued)
	return issued.Add(min(life*8/10, tokenMaxAge))
}
