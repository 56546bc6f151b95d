package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	admissionapi "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// maxCalls is how many webhooks are asked at the same time, for all requests together; the rest wait.
	maxCalls = 256
	// maxAnswer is the longest answer that is read, in bytes: a patch may replace an object of 3 MiB, in base64.
	maxAnswer = 5 << 20
	// maxTransports is how many certificate authorities are remembered with their connections.
	maxTransports = 64
	idlePerHost   = 25
)

// Caller posts reviews to webhooks and keeps connections between them.
type Caller struct {
	reach func(namespace, name, port string) (string, error)
	room  chan struct{}

	mu  sync.Mutex // guards via
	via map[transportKey]*http.Transport
}

type transportKey struct {
	service bool
	ca      [sha256.Size]byte
}

// NewCaller returns a Caller; reach finds host:port of a ready endpoint of a service port.
func NewCaller(reach func(namespace, name, port string) (string, error)) *Caller {
	return &Caller{reach: reach, room: make(chan struct{}, maxCalls), via: map[transportKey]*http.Transport{}}
}

// transport returns the connections to webhooks with a certificate authority; service ones
// are found by name, without DNS.
func (c *Caller) transport(ca []byte, service bool) (*http.Transport, error) {
	key := transportKey{service, sha256.Sum256(ca)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.via[key]; t != nil {
		return t, nil
	}
	// One stream for each connection: load spreads over the endpoints of a service.
	conf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if len(ca) > 0 {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("unable to load root certificates: no valid certificate in caBundle")
		}
	}
	dial := (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t := &http.Transport{
		TLSClientConfig: conf, TLSHandshakeTimeout: 10 * time.Second, DialContext: dial,
		MaxIdleConnsPerHost: idlePerHost, IdleConnTimeout: 30 * time.Second, ForceAttemptHTTP2: false,
		MaxResponseHeaderBytes: 1 << 20,
	}
	if service {
		t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			name, namespace, _ := strings.Cut(strings.TrimSuffix(host, ".svc"), ".")
			to, err := c.reach(namespace, name, port)
			if err != nil {
				return nil, err
			}
			return dial(ctx, network, to)
		}
	} else {
		t.Proxy = http.ProxyFromEnvironment
	}
	if len(c.via) >= maxTransports { // certificates that are out of use have piled up: start afresh
		for k, old := range c.via {
			old.CloseIdleConnections()
			delete(c.via, k)
		}
	}
	c.via[key] = t
	return t, nil
}

// address is the URL of a webhook without its timeout parameter.
func address(client *admissionv1.WebhookClientConfig) (u *url.URL, service bool, err error) {
	if s := client.Service; s != nil {
		port := 443
		if s.Port != nil {
			port = int(*s.Port)
		}
		u := &url.URL{Scheme: "https", Host: net.JoinHostPort(s.Name+"."+s.Namespace+".svc", strconv.Itoa(port))}
		if s.Path != nil {
			u.Path = *s.Path
		}
		return u, true, nil
	}
	if client.URL == nil {
		return nil, false, errors.New("webhook configuration must have either service or URL")
	}
	if u, err = url.Parse(*client.URL); err != nil {
		return nil, false, fmt.Errorf("unparsable URL: %w", err)
	}
	return u, false, nil
}

// post sends an admission review and reads the answer. ctx ends when the webhook's time is over.
func (c *Caller) post(ctx context.Context, h *hook, body []byte) (*admissionapi.AdmissionReview, error) {
	text, err := c.Send(ctx, &h.client, "kube-apiserver-admission", body)
	if err != nil {
		return nil, err
	}
	answer := &admissionapi.AdmissionReview{}
	if err := json.Unmarshal(text, &metav1.TypeMeta{}); err != nil {
		return nil, fmt.Errorf("couldn't get version/kind; json parse error: %w", err)
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return nil, err
	}
	return answer, nil
}

// Send posts body, and returns the body of a good answer. ctx ends when the webhook's time is over.
func (c *Caller) Send(ctx context.Context, client *admissionv1.WebhookClientConfig, agent string, body []byte) ([]byte, error) {
	u, service, err := address(client)
	if err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		left := time.Until(end)
		u.RawQuery = "timeout=" + strconv.FormatInt(int64((left+time.Second-1)/time.Second), 10) + "s"
	}
	via, err := c.transport(client.CABundle, service)
	if err != nil {
		return nil, err
	}
	select {
	case c.room <- struct{}{}:
		defer func() { <-c.room }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	rq, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	rq.Header.Set("Content-Type", "application/json")
	rq.Header.Set("Accept", "application/json, */*")
	rq.Header.Set("User-Agent", agent)
	web := http.Client{Transport: via, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	rs, err := web.Do(rq)
	if err != nil {
		return nil, err
	}
	defer rs.Body.Close()
	text, err := io.ReadAll(io.LimitReader(rs.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("Post %q: %w", u, err)
	case len(text) > maxAnswer:
		return nil, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	case rs.StatusCode < 200 || rs.StatusCode > 299:
		return nil, refusedBy(rs, text)
	case len(text) == 0:
		return nil, fmt.Errorf("0-length response with status code: %d and content type: %s", rs.StatusCode, rs.Header.Get("Content-Type"))
	}
	return text, nil
}

// refusedBy is what an answer with a code other than of success says: a Status, a text, or nothing that is known.
func refusedBy(rs *http.Response, text []byte) error {
	st := metav1.Status{}
	if json.Unmarshal(text, &st) == nil && st.Kind == "Status" && st.APIVersion == "v1" && st.Status != metav1.StatusSuccess {
		return &apierrors.StatusError{ErrStatus: st}
	}
	said := "unknown"
	if kind := rs.Header.Get("Content-Type"); kind == "" || strings.HasPrefix(kind, "text/") {
		said = strings.TrimSpace(string(text[:min(len(text), 1024)]))
	}
	return apierrors.NewGenericServerResponse(rs.StatusCode, "post", schema.GroupResource{}, "", said, 0, true)
}
