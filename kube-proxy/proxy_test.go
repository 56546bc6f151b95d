package kubeproxy

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

func TestServicesOfOtherProxiesHaveNames(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p := &proxy{}
	p.caches(fake.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: "web", Labels: map[string]string{"service.kubernetes.io/service-proxy-name": "other"},
	}}))
	ended := make(chan error, 1)
	go func() { ended <- p.services.Run(ctx) }()
	if !wait(ctx, p.services.Synced()) {
		t.Fatal("the list of services has not come after 10 s")
	}
	if (names{p}).Service(types.NamespacedName{Namespace: "ns", Name: "web"}) == nil {
		t.Error("DNS does not know the service")
	}
	cancel()
	<-ended
}
