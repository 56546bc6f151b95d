package rootca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/cert"

	"github.com/keelson/keelson/controller-manager/ctrltest"
	"github.com/keelson/keelson/controller-manager/runtime"
)

func TestBundleIsPublishedAndKeptRight(t *testing.T) {
	key := ctrltest.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ca := ctrltest.Must(cert.EncodeCertificates(ctrltest.Must(cert.NewSelfSignedCACert(cert.Config{CommonName: "ca"}, key))))
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	settings := runtime.DefaultSettings()
	settings.RootCAFile = file
	ctx := context.Background()
	ctrltest.TestWith(t, settings, []runtime.Row{Row}, []kruntime.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}}, func(t *testing.T, h *ctrltest.Harness) {
		api := h.Client.CoreV1().ConfigMaps("a")
		m := ctrltest.Must(api.Get(ctx, name, metav1.GetOptions{}))
		if m.Data["ca.crt"] != string(ca) || m.Annotations["kubernetes.io/description"] == "" {
			t.Fatalf("published: %+v", m)
		}
		m.Data = map[string]string{"ca.crt": "mine", "more": "x"}
		ctrltest.Must(api.Update(ctx, m, metav1.UpdateOptions{}))
		h.Rest()
		if m = ctrltest.Must(api.Get(ctx, name, metav1.GetOptions{})); m.Data["ca.crt"] != string(ca) || len(m.Data) != 1 {
			t.Errorf("changes are taken back: %v", m.Data)
		}
		if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		h.Rest()
		ctrltest.Must(api.Get(ctx, name, metav1.GetOptions{}))
	})
}
