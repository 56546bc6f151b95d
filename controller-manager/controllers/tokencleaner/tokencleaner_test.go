package tokencleaner

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func TestExpiredTokensGo(t *testing.T) {
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where the tests' clock starts
	secret := func(ns, name, kind, expires string) kruntime.Object {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Type: corev1.SecretType(kind)}
		if expires != "" {
			s.Data = map[string][]byte{"expiration": []byte(expires)}
		}
		return s
	}
	past, soon := start.Add(-time.Hour).Format(time.RFC3339), start.Add(time.Hour).Format(time.RFC3339)
	ctrltest.Test(t, []runtime.Row{Row}, []kruntime.Object{
		secret("kube-system", "past", string(tokenType), past), secret("kube-system", "soon", string(tokenType), soon),
		secret("kube-system", "unreadable", string(tokenType), "tomorrow"), secret("kube-system", "endless", string(tokenType), ""),
		secret("kube-system", "opaque", "Opaque", past), secret("ns", "elsewhere", string(tokenType), past),
	}, func(t *testing.T, h *ctrltest.Harness) {
		if w := h.Writes(); w != "delete secrets past\ndelete secrets unreadable" {
			t.Errorf("at the start:\n%s", w)
		}
		h.After(time.Hour)
		if w := strings.TrimSpace(h.Writes()); w != "delete secrets soon" {
			t.Errorf("when its time has come:\n%s", w)
		}
	})
}
