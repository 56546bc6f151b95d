package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/keelson/keelson/apiserver/aggregator"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
)

// registrations is aggregator.Writer: what the server itself writes of APIServices.
type registrations struct{ *api }

var grAPIServices = schema.GroupResource{Group: aggregator.Group, Resource: "apiservices"}

func (a registrations) Create(ctx context.Context, s *apiregistrationv1.APIService) error {
	return a.api.Create(ctx, grAPIServices, s.DeepCopy())
}

func (a registrations) Update(ctx context.Context, part, name string, change func(*apiregistrationv1.APIService) error) error {
	return a.api.Update(ctx, grAPIServices, part, "", name, func(o resources.Object) (resources.Object, error) {
		s := o.DeepCopyObject().(*apiregistrationv1.APIService)
		return s, change(s)
	})
}

func (a registrations) Delete(ctx context.Context, name string, when *metav1.Preconditions) error {
	return a.api.Delete(ctx, grAPIServices, name, when)
}

// aggregation wires the room of the APIs that other servers serve.
func (s *server) aggregation() (*aggregator.Aggregator, error) {
	c := aggregator.Config{
		Registry: s.reg, Cache: s.cache, Writer: registrations{s.api}, Fail: rest.WriteError, Log: s.log.With("room", "aggregator"),
		Whole: func() bool { return s.custom.Served() == nil },
		Reach: func(namespace, name, port string) (string, error) { return s.proxy.Reach(namespace, name, port) },
	}
	if cert, key := s.cfg.ProxyClientCertFile, s.cfg.ProxyClientKeyFile; cert != "" {
		// Read for every new connection, so that it can be renewed.
		c.Certificate = func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
		if _, err := c.Certificate(); err != nil {
			return nil, fmt.Errorf("--proxy-client-cert-file %s and --proxy-client-key-file %s: %w", cert, key, err)
		}
	}
	return aggregator.New(c), nil
}
