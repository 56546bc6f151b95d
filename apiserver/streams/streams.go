// Package streams forwards what is not answered from the store: container logs,
// exec, attach and port-forward to the kubelet of the pod's node, and the proxy
// subresources to nodes, pods and services.
//
// Upgraded connections (SPDY and WebSocket) are passed through byte by byte: the
// kubelet speaks both protocols. No goroutine outlives its request. A kubelet
// that does not answer is given up after DialTimeout with 502 or 503 and its address.
package streams

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/proxy"

	"github.com/keelson/keelson/apiserver/resources"
)

// Target is what a stream is about. Rest is the path behind "proxy", without its leading slash.
type Target struct {
	Namespace, Name, Rest string
}

// KubeletConfig is how kubelets are reached.
type KubeletConfig struct {
	CertFile, KeyFile string // the client certificate shown to kubelets
	CAFile            string // verifies the kubelets; empty: their certificates are not verified
	AddressTypes      []corev1.NodeAddressType
	DefaultPort       int
	DialTimeout       time.Duration
}

// Proxy forwards. Errors go to Fail, which writes them as a metav1.Status.
type Proxy struct {
	read    resources.Reader
	cfg     KubeletConfig
	kubelet *http.Transport // verifies the kubelet, shows our certificate
	logs    *http.Transport // the same, without verification, when a client asks for it
	pods    *http.Transport // to pods and services: any certificate is taken, as the address is ours
	fail    func(w http.ResponseWriter, r *http.Request, err error)
}

// New reads the certificates. They are read again for every new connection, so that they can be renewed.
func New(cfg KubeletConfig, read resources.Reader, fail func(http.ResponseWriter, *http.Request, error)) (*Proxy, error) {
	if cfg.DefaultPort == 0 {
		cfg.DefaultPort = 10250
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = 10 * time.Second
	}
	if len(cfg.AddressTypes) == 0 {
		cfg.AddressTypes = []corev1.NodeAddressType{corev1.NodeHostName, corev1.NodeInternalDNS, corev1.NodeInternalIP, corev1.NodeExternalDNS, corev1.NodeExternalIP}
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("--kubelet-client-certificate %s and --kubelet-client-key %s: %w", cfg.CertFile, cfg.KeyFile, err)
		}
		secure.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
			return &c, err
		}
	}
	unverified := secure.Clone()
	unverified.InsecureSkipVerify = true
	if cfg.CAFile == "" {
		secure.InsecureSkipVerify = true
	} else {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--kubelet-certificate-authority: %w", err)
		}
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--kubelet-certificate-authority %s: no PEM certificate found", cfg.CAFile)
		}
	}
	transport := func(c *tls.Config) *http.Transport {
		return &http.Transport{
			DialContext:           (&net.Dialer{Timeout: cfg.DialTimeout, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:       c,
			TLSHandshakeTimeout:   cfg.DialTimeout,
			MaxIdleConnsPerHost:   4,
			IdleConnTimeout:       time.Minute,
			DisableCompression:    true,
			ResponseHeaderTimeout: 0, // an exec may wait for long; the request's context bounds the rest
		}
	}
	return &Proxy{
		read: read, cfg: cfg, fail: fail,
		kubelet: transport(secure), logs: transport(unverified),
		pods: transport(&tls.Config{InsecureSkipVerify: true}), //nolint:gosec // as upstream: the peer is a pod, not a named host
	}, nil
}

// Close drops idle connections.
func (p *Proxy) Close() {
	for _, t := range []*http.Transport{p.kubelet, p.logs, p.pods} {
		t.CloseIdleConnections()
	}
}

var (
	grPods     = schema.GroupResource{Resource: "pods"}
	grNodes    = schema.GroupResource{Resource: "nodes"}
	grServices = schema.GroupResource{Resource: "services"}
	grSlices   = schema.GroupResource{Group: "discovery.k8s.io", Resource: "endpointslices"}
)

// node returns the host and port of a node's kubelet.
func (p *Proxy) node(name string) (host string, port int, err error) {
	n, err := resources.Lookup[corev1.Node](p.read, grNodes, "", name)
	if err != nil {
		return "", 0, err
	}
	if n == nil {
		return "", 0, apierrors.NewNotFound(grNodes, name)
	}
	port = p.cfg.DefaultPort
	if n.Status.DaemonEndpoints.KubeletEndpoint.Port > 0 {
		port = int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)
	}
	for _, want := range p.cfg.AddressTypes {
		for _, a := range n.Status.Addresses {
			if a.Type == want && a.Address != "" {
				return a.Address, port, nil
			}
		}
	}
	return "", 0, apierrors.NewInternalError(fmt.Errorf("no preferred addresses found on node %q; known addresses: %v; wanted types: %v", name, n.Status.Addresses, p.cfg.AddressTypes))
}

func (p *Proxy) pod(t Target) (*corev1.Pod, error) {
	pod, err := resources.Lookup[corev1.Pod](p.read, grPods, t.Namespace, t.Name)
	if err != nil {
		return nil, err
	}
	if pod == nil {
		return nil, apierrors.NewNotFound(grPods, t.Name)
	}
	return pod, nil
}

// kubeletURL is the address of a path on the kubelet that runs pod.
func (p *Proxy) kubeletURL(pod *corev1.Pod, path string, query url.Values) (*url.URL, error) {
	host, port, err := p.node(pod.Spec.NodeName)
	if err != nil {
		return nil, err
	}
	return &url.URL{
		Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(port)), Path: path, RawQuery: query.Encode(),
	}, nil
}

// forward passes the request on. upgrade says that nothing but an upgraded connection makes sense.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, to *url.URL, via *http.Transport, wrap, upgrade bool) {
	h := proxy.NewUpgradeAwareHandler(to, via, wrap, upgrade, proxy.NewErrorResponder(responder{p, w, r}))
	h.UseLocationHost = !wrap
	h.UseRequestLocation = false
	h.ServeHTTP(w, r)
}

type responder struct {
	p *Proxy
	w http.ResponseWriter
	r *http.Request
}

// Error answers a failure to reach the peer.
func (e responder) Error(err error) {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		e.p.fail(e.w, e.r, err)
		return
	}
	e.p.fail(e.w, e.r, &apierrors.StatusError{ErrStatus: unavailable(err)})
}
