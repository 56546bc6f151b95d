package serviceaccounttoken

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/keyutil"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func TestSecretIsFilledAndGoesWithItsAccount(t *testing.T) {
	key := ctrltest.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	file := filepath.Join(t.TempDir(), "sa.key")
	if err := os.WriteFile(file, ctrltest.Must(keyutil.MarshalPrivateKeyToPEM(key)), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := runtime.DefaultSettings()
	settings.ServiceAccountKeyFile = file
	ctx := context.Background()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "robot", UID: "u1"}, Secrets: []corev1.ObjectReference{{Name: "token"}, {Name: "other"}}}
	secret := func(name, account string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: account}}, Type: corev1.SecretTypeServiceAccountToken}
	}
	ctrltest.TestWith(t, settings, []runtime.Row{Row}, []kruntime.Object{account, secret("token", "robot"), secret("second", "robot"), secret("nobody", "gone")}, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().Secrets("ns")
		if _, err := api.Get(ctx, "nobody", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("a secret whose account is not there goes: %v", err)
		}
		s := ctrltest.Must(api.Get(ctx, "token", metav1.GetOptions{}))
		if string(s.Data["namespace"]) != "ns" || s.Annotations[corev1.ServiceAccountUIDKey] != "u1" {
			t.Errorf("namespace and UID: %s", s)
		}
		parsed, err := jwt.ParseSigned(string(s.Data["token"]), []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]any{}
		if err := parsed.Claims(key.Public(), &got); err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]string{
			"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:ns:robot", "kubernetes.io/serviceaccount/namespace": "ns",
			"kubernetes.io/serviceaccount/secret.name": "token", "kubernetes.io/serviceaccount/service-account.name": "robot", "kubernetes.io/serviceaccount/service-account.uid": "u1",
		} {
			if got[k] != v {
				t.Errorf("claim %s: want %q, got %v", k, v, got[k])
			}
		}
		if parsed.Headers[0].KeyID == "" || got["exp"] != nil {
			t.Errorf("the key is named and the token has no end: %v, %v", parsed.Headers, got)
		}
		h.Writes()
		h.Rest()
		if w := h.Writes(); w != "" {
			t.Errorf("a full secret is left alone:\n%s", w)
		}
		if err := api.Delete(ctx, "token", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if a := ctrltest.Must(h.Client.CoreV1().ServiceAccounts("ns").Get(ctx, "robot", metav1.GetOptions{})); len(a.Secrets) != 1 || a.Secrets[0].Name != "other" {
			t.Errorf("the account forgets exactly the deleted secret: %v", a.Secrets)
		}
		h.Writes()
		if err := h.Client.CoreV1().ServiceAccounts("ns").Delete(ctx, "robot", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		if w := h.Writes(); !strings.Contains(w, "delete secrets second") {
			t.Errorf("secrets go with their account:\n%s", w)
		}
	})
}

func TestWithoutKey(t *testing.T) {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "t", Annotations: map[string]string{corev1.ServiceAccountNameKey: "x"}}, Type: corev1.SecretTypeServiceAccountToken}
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{s}, func(t *testing.T, h *ctrltest.Harness) {
		if w := h.Writes(); w != "" {
			t.Errorf("without a key nothing is done, and nothing deleted:\n%s", w)
		}
	})
}
