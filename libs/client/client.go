// Package client makes clients of the API server, set up alike in all daemons.
//
// The main call is [New]; [REST] gives the configuration alone, for clients of other kinds.
//
// It promises: protobuf on the wire where the kind has it; certificates and tokens are read again
// when their files change; a dead connection is noticed by HTTP/2 pings within 45 seconds, and a new
// one must be made within 10; requests are not held back on this side unless a rate is configured
// (the server's own fairness decides). A message about a bad kubeconfig names the file.
package client

import (
	"fmt"
	"net"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"

	"github.com/keelson/keelson/libs/config"
	"github.com/keelson/keelson/libs/trace"
)

// Config is the part of a daemon's configuration that says how to reach the API server.
type Config struct {
	Kubeconfig string  `yaml:"kubeconfig" flag:"kubeconfig" help:"kubeconfig file; empty uses the pod's service account"`
	Master     string  `yaml:"master" flag:"master" help:"address of the API server; wins over the kubeconfig's"`
	QPS        float32 `yaml:"kubeAPIQPS" flag:"kube-api-qps" help:"requests a second sent to the API server; 0 or less: no limit"`
	Burst      int     `yaml:"kubeAPIBurst" flag:"kube-api-burst" help:"requests sent at once above the rate, when a rate is set"`

	// Metrics, when set, counts the requests of the client.
	Metrics *Metrics `yaml:"-"`
}

// Validate finds what is wrong without reading the file.
func (c Config) Validate() field.ErrorList {
	var errs field.ErrorList
	if c.QPS > 0 && c.Burst < 1 {
		errs = append(errs, field.Invalid(field.NewPath("kubeAPIBurst"), c.Burst, "must be at least 1 when kubeAPIQPS is set"))
	}
	return errs
}

// REST reads the kubeconfig. userAgent is the daemon's name; the version is added.
func REST(cfg Config, userAgent string) (*rest.Config, error) {
	rc, err := load(cfg)
	if err != nil {
		return nil, err
	}
	rc.UserAgent = userAgent + "/" + config.Version
	rc.ContentType = runtime.ContentTypeProtobuf
	rc.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	rc.QPS, rc.Burst = cfg.QPS, cfg.Burst
	if cfg.QPS <= 0 {
		rc.QPS = -1
	}
	rc.Dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	rc.Wrap(trace.RoundTripper)
	if cfg.Metrics != nil {
		rc.Wrap(cfg.Metrics.wrap)
	}
	return rc, nil
}

func load(cfg Config) (*rest.Config, error) {
	switch {
	case cfg.Kubeconfig != "":
		if _, err := os.Stat(cfg.Kubeconfig); err != nil {
			return nil, fmt.Errorf("kubeconfig: %w", err)
		}
		rc, err := clientcmd.BuildConfigFromFlags(cfg.Master, cfg.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", cfg.Kubeconfig, err)
		}
		return rc, nil
	case cfg.Master != "":
		return &rest.Config{Host: cfg.Master}, nil
	}
	rc, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("no kubeconfig is set (flag --kubeconfig), and this is no pod: %w", err)
	}
	return rc, nil
}

// CertificateEnds is when the client certificate ends that rc names, as it is now; false when it names none that
// can be read. rc may be nil.
func CertificateEnds(rc *rest.Config) (time.Time, bool) {
	if rc == nil {
		return time.Time{}, false
	}
	text := rc.CertData
	if len(text) == 0 && rc.CertFile != "" {
		var err error
		if text, err = os.ReadFile(rc.CertFile); err != nil {
			return time.Time{}, false
		}
	}
	certs, err := cert.ParseCertsPEM(text)
	if err != nil {
		return time.Time{}, false
	}
	return certs[0].NotAfter, true
}

// New makes the clientset, and gives the configuration that it was made from. Nothing is sent yet.
func New(cfg Config, userAgent string) (kubernetes.Interface, *rest.Config, error) {
	rc, err := REST(cfg, userAgent)
	if err != nil {
		return nil, nil, err
	}
	c, err := newClientset(rc)
	if err != nil {
		return nil, nil, fmt.Errorf("client for %s: %w", rc.Host, err)
	}
	return c, rc, nil
}
