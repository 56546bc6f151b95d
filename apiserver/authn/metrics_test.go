package authn

import (
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/readertest"
)

// A pod's token counts as stale once its holder should have taken another; one of a Secret that is marked as out of use is refused.
func TestUsesOfTokensAreCounted(t *testing.T) {
	key := testKey(1234567)
	now := time.Unix(1_800_000_000, 0)
	sign, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	kept := func(secret string) (token string, obj *corev1.Secret) {
		token, err := jwt.Signed(sign).Claims(jwt.Claims{Issuer: "kubernetes/serviceaccount"}).Claims(map[string]any{
			"kubernetes.io/serviceaccount/namespace": "ns", "kubernetes.io/serviceaccount/service-account.name": "sa",
			"kubernetes.io/serviceaccount/service-account.uid": "u1", "kubernetes.io/serviceaccount/secret.name": secret,
		}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: secret}, Data: map[string][]byte{"token": []byte(token)}}
	}
	auto, autoSecret := kept("auto")
	manual, manualSecret := kept("manual")
	marked, markedSecret := kept("marked")
	markedSecret.Labels = map[string]string{"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "sa", UID: "u1"}, Secrets: []corev1.ObjectReference{{Name: "auto"}}}
	reg := prometheus.NewRegistry()
	var used []string
	mark := func(s *corev1.Secret, day string) {
		used = append(used, s.Name)
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels[LastUsed] = day
	}
	s := &ServiceAccounts{Issuer: "https://issuer", Keys: []PublicKey{{Key: &key.PublicKey}}, Signer: key, Metrics: NewTokenMetrics(reg),
		Read: readertest.New(sa, autoSecret, manualSecret, markedSecret), Now: func() time.Time { return now }, Used: mark}
	if s.Keys[0].ID, err = keyID(&key.PublicKey); err != nil {
		t.Fatal(err)
	}
	issued := func(stale time.Duration) string {
		token, _, err := s.Issue(sa, []string{"https://issuer"}, time.Hour, stale, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	plain, fresh, old := issued(0), issued(30*time.Minute), issued(time.Minute)
	now = now.Add(10 * time.Minute)
	for _, token := range []string{auto, manual, plain, fresh, old, old} {
		if _, _, _, err := s.Check(token, s.accepted()); err != nil {
			t.Error(err)
		}
	}
	if _, _, _, err := s.Check(marked, s.accepted()); err == nil || !strings.Contains(err.Error(), "has been marked invalid") {
		t.Errorf("a token that is out of use: %v", err)
	}
	got, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		"serviceaccount_legacy_tokens_total": 2, "serviceaccount_legacy_auto_token_uses_total": 1, "serviceaccount_legacy_manual_token_uses_total": 1,
		"serviceaccount_invalid_legacy_auto_token_uses_total": 1, "serviceaccount_valid_tokens_total": 1, "serviceaccount_stale_tokens_total": 2,
	}
	for _, f := range got {
		if n := f.Metric[0].GetCounter().GetValue(); n != want[f.GetName()] {
			t.Errorf("%s is %v, want %v", f.GetName(), n, want[f.GetName()])
		}
	}
	if got := strings.Join(used, " "); got != "auto manual marked" {
		t.Errorf("uses were noted of %s", got)
	}
	if u, _, _, _ := s.Check(auto, s.accepted()); !strings.Contains(u.Noted.Warning, "instead of auto-generated secret-based tokens") || u.Noted.Value != "auto" {
		t.Errorf("a token that the cluster has made by itself: %+v", u.Noted)
	}
	if u, _, _, _ := s.Check(manual, s.accepted()); u.Noted.Warning != "" || u.Noted.Key != "authentication.k8s.io/legacy-token-manual-secret" {
		t.Errorf("a token that was asked for: %+v", u.Noted)
	}
	if u, _, _, _ := s.Check(old, s.accepted()); u.Noted.Key != "authentication.k8s.io/stale-token" || u.Noted.Value != "subject: system:serviceaccount:ns:sa, seconds after warning threshold: 540" {
		t.Errorf("a token that should have been renewed: %+v", u.Noted)
	}
	if u, _, _, _ := s.Check(fresh, s.accepted()); u.Noted != nil {
		t.Errorf("there is nothing to say about a fresh token: %+v", u.Noted)
	}
	// Tokens of a Secret end with the deletion of their account, others a minute later.
	sa.DeletionTimestamp = &metav1.Time{Time: now.Add(-30 * time.Second)}
	if _, _, _, err := s.Check(manual, s.accepted()); err == nil {
		t.Error("the account of a token in a Secret is being deleted")
	}
	if _, _, _, err := s.Check(fresh, s.accepted()); err != nil {
		t.Errorf("the account is being deleted since a moment: %v", err)
	}
	sa.DeletionTimestamp.Time = now.Add(-61 * time.Second)
	if _, _, _, err := s.Check(fresh, s.accepted()); err == nil {
		t.Error("the account is being deleted for longer than a minute")
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}
