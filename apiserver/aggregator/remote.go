package aggregator

import (
	"context"
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
	"sync/atomic"
	"time"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/keelson/keelson/apiserver/discovery"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/watchcache"
	"github.com/keelson/keelson/libs/run"
)

// remote is one group version that another server answers for, under one specification:
// when that changes another remote takes its place.
type remote struct {
	a         *Aggregator
	gv        schema.GroupVersion
	name      string
	uid       types.UID
	spec      *apiregistrationv1.APIServiceSpec
	via       *http.Transport
	broken    error // why there is no way to ask the server
	available atomic.Bool
	found     atomic.Pointer[findings]
	ctx       context.Context // ends with this remote; requests that are under way go on
	cancel    context.CancelFunc
}

// findings are what a server has said of its group version, last.
type findings struct {
	discovery apidiscovery.APIVersionDiscovery
	err       error // the last attempt has failed: the rest is of an earlier one
	fresh     bool  // there was an attempt, and the server was available
	etag      string
	v2        *discovery.Fragment
	v2tag     string
	v3        string // path and query of its OpenAPI v3 document, "" when it has none
}

func (f *findings) stale() bool { return !f.fresh || f.err != nil }

const (
	dialTimeout  = 5 * time.Second
	askTimeout   = 5 * time.Second // for a discovery document, as upstream
	docTimeout   = 30 * time.Second
	maxAttempts  = 5        // endpoints that are asked before an API is said to be unavailable
	maxDocBytes  = 32 << 20 // of a discovery or OpenAPI document
	inspector    = "system:kube-aggregator"
	masters      = "system:masters"
	mediaGroups  = "application/json;g=apidiscovery.k8s.io;v=%s;as=APIGroupDiscoveryList"
	mediaJSON    = "application/json"
	longestRetry = checkEvery
)

func newRemote(a *Aggregator, gv schema.GroupVersion, s *apiregistrationv1.APIService) *remote {
	r := &remote{a: a, gv: gv, name: s.Name, uid: s.UID, spec: s.Spec.DeepCopy()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.via, r.broken = a.transport(&s.Spec)
	r.found.Store(&findings{discovery: apidiscovery.APIVersionDiscovery{Version: gv.Version}})
	return r
}

// transport is how the server of a specification is reached. Names are not looked up: the
// address is an endpoint's, and the certificate must be the service's.
func (a *Aggregator) transport(spec *apiregistrationv1.APIServiceSpec) (*http.Transport, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: spec.Service.Name + "." + spec.Service.Namespace + ".svc"}
	switch {
	case spec.InsecureSkipTLSVerify:
		conf.InsecureSkipVerify = true //nolint:gosec // the administrator asks for it
	case len(spec.CABundle) > 0:
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(spec.CABundle) {
			return nil, errors.New("unable to load root certificates: no valid certificate in caBundle")
		}
	}
	if a.cfg.Certificate != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.cfg.Certificate() }
	}
	return &http.Transport{
		TLSClientConfig: conf, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
		DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 25, IdleConnTimeout: 90 * time.Second, DisableCompression: true,
		// A server that has gone without a word is noticed by its silence.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}, nil
}

// tend looks after the server until the remote or parent ends.
func (r *remote) tend(parent context.Context) error {
	defer r.cancel()
	defer context.AfterFunc(parent, r.cancel)()
	defer func() {
		if r.via != nil {
			r.via.CloseIdleConnections()
		}
	}()
	wake := make(chan struct{}, 1)
	g := run.New(r.ctx)
	ref := r.spec.Service
	g.Go("service", func(ctx context.Context) error {
		return r.a.cfg.Cache.Follow(ctx, watchcache.Selection{Prefix: "services/specs", Namespaced: true, Namespace: ref.Namespace, Name: ref.Name}, wake)
	})
	g.Go("slices", func(ctx context.Context) error {
		return r.a.cfg.Cache.Follow(ctx, watchcache.Selection{Prefix: "endpointslices", Namespaced: true, Namespace: ref.Namespace}, wake)
	})
	g.Go("check", func(ctx context.Context) error {
		pause := retryAtFirst
		for {
			wait := checkEvery
			if err := r.check(ctx); err != nil {
				r.a.cfg.Log.Debug("aggregated API is not as it should be", "apiservice", r.name, "err", err)
				wait, pause = pause, min(2*pause, longestRetry)
			} else {
				pause = retryAtFirst
			}
			timer := time.NewTimer(wait)
			select {
			case <-wake:
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil
			}
			timer.Stop()
		}
	})
	return g.Wait()
}

// check looks once. Its error says that looking again soon is worthwhile.
func (r *remote) check(ctx context.Context) error {
	svc, list, err := r.observe()
	if err != nil {
		return err
	}
	c, failed := Reachable(r.spec.Service, svc, list), error(nil)
	if c == nil {
		failed = r.ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		now := answered(failed)
		c = &now
	}
	next := *r.found.Load()
	if next.fresh = c.Status == apiregistrationv1.ConditionTrue; next.fresh {
		next.err = r.readDiscovery(ctx, &next)
		failed = next.err
	}
	if ctx.Err() != nil {
		return nil
	}
	// Discovery comes before the condition: who waits for that one asks next what there is.
	r.learn(next)
	if err := r.report(ctx, *c); err != nil {
		return err
	}
	if next.fresh && next.err == nil {
		r.readSchemas(ctx, &next)
		if ctx.Err() == nil {
			r.learn(next)
		}
	}
	return failed
}

// learn stores what was found, and tells discovery when it differs.
func (r *remote) learn(next findings) {
	last := r.found.Swap(&next)
	before, _ := json.Marshal(last.discovery)
	after, _ := json.Marshal(next.discovery)
	if last.stale() != next.stale() || last.v3 != next.v3 || last.v2tag != next.v2tag || last.v2 != next.v2 || string(before) != string(after) {
		r.a.version.Add(1)
	}
}

// observe reads the service and its endpoint slices; svc is nil when there is none.
func (r *remote) observe() (svc *corev1.Service, list []*discoveryv1.EndpointSlice, err error) {
	ref, read := r.spec.Service, r.a.cfg.Cache.Reader()
	svc, err = resources.Lookup[corev1.Service](read, schema.GroupResource{Resource: "services"}, ref.Namespace, ref.Name)
	if err != nil || svc == nil {
		return nil, nil, err
	}
	err = read.Each(discoveryv1.Resource("endpointslices"), ref.Namespace, func(o resources.Object) bool {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelServiceName] == ref.Name {
			list = append(list, s)
		}
		return true
	})
	return svc, list, err
}

// ask asks an endpoint for the group version's discovery document, and when that fails a few more:
// one that answers is enough.
func (r *remote) ask(ctx context.Context) error {
	if r.broken != nil {
		return r.broken
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if r.askOnce(ctx) == nil {
		return nil
	}
	r.via.CloseIdleConnections()
	if ctx.Err() != nil { // no time is left: the others get their own
		var again context.CancelFunc
		ctx, again = context.WithTimeout(r.ctx, askTimeout)
		defer again()
	}
	results := make(chan error, maxAttempts-1)
	for range cap(results) {
		go func() { results <- r.askOnce(ctx) }()
	}
	var last error
	answers := 0
	for range cap(results) {
		if err := <-results; err == nil {
			answers++
		} else {
			last = err
		}
	}
	if answers > 0 {
		return nil
	}
	r.via.CloseIdleConnections()
	return last
}

func (r *remote) askOnce(ctx context.Context) error {
	status, _, _, at, err := r.get(ctx, pathOf(r.gv), mediaJSON, "")
	if err == nil && (status < 200 || status > 299) {
		err = fmt.Errorf("bad status from %s: %d", at, status)
	}
	if err != nil && at != "" {
		err = fmt.Errorf("failing or missing response from %s: %w", at, err)
	}
	return err
}

// get asks any endpoint for a document, as the server itself. at is the address that was asked.
func (r *remote) get(ctx context.Context, path, accept, etag string) (status int, header http.Header, body []byte, at string, err error) {
	if r.broken != nil {
		return 0, nil, nil, "", r.broken
	}
	host, err := r.endpoint()
	if err != nil {
		return 0, nil, nil, "", err
	}
	u, err := url.Parse("https://" + host + path)
	if err != nil {
		return 0, nil, nil, "", err
	}
	rq, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, nil, nil, "", err
	}
	transport.SetAuthProxyHeaders(rq, inspector, "", []string{masters}, nil)
	if accept != "" {
		rq.Header.Set("Accept", accept)
	}
	if etag != "" {
		rq.Header.Set("If-None-Match", etag)
	}
	rs, err := r.via.RoundTrip(rq) // redirects are answers, not followed
	if err != nil {
		return 0, nil, nil, u.String(), err
	}
	defer rs.Body.Close()
	body, err = io.ReadAll(io.LimitReader(rs.Body, maxDocBytes+1))
	if err == nil && len(body) > maxDocBytes {
		err = fmt.Errorf("the document is longer than %d bytes", maxDocBytes)
	}
	return rs.StatusCode, rs.Header, body, u.String(), err
}

// endpoint is host:port of a ready endpoint.
func (r *remote) endpoint() (string, error) {
	ref := r.spec.Service
	return r.a.cfg.Reach(ref.Namespace, ref.Name, strconv.Itoa(int(portOf(ref))))
}

// report writes the condition if it says something new about the APIService that was looked at.
func (r *remote) report(ctx context.Context, c apiregistrationv1.APIServiceCondition) error {
	gr := grServices
	have, err := resources.Lookup[apiregistrationv1.APIService](r.a.cfg.Cache.Reader(), gr, "", r.name)
	if err != nil || have == nil || have.UID != r.uid {
		return err
	}
	if now := resources.APIServiceCondition(&have.Status); now != nil && now.Status == c.Status && now.Reason == c.Reason && now.Message == c.Message {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err = r.a.cfg.Writer.Update(ctx, "status", r.name, func(s *apiregistrationv1.APIService) error {
		if s.UID == r.uid && s.Spec.Service != nil && r.same(&s.Spec) {
			resources.SetAPIServiceCondition(&s.Status, c, r.a.cfg.Now())
		}
		return nil
	})
	if apierrors.IsNotFound(err) || ctx.Err() != nil {
		return nil
	}
	if err == nil && c.Status != apiregistrationv1.ConditionTrue {
		r.a.failures.add(r.name, c.Reason)
		r.a.cfg.Log.Info("aggregated API is not available", "apiservice", r.name, "reason", c.Reason, "message", c.Message)
	}
	return err
}

// readSchemas asks for what OpenAPI is to say. It is a courtesy: a server without it is served all the same.
func (r *remote) readSchemas(ctx context.Context, f *findings) {
	ctx, cancel := context.WithTimeout(ctx, docTimeout)
	defer cancel()
	if status, h, body, _, err := r.get(ctx, "/openapi/v2", mediaJSON, f.v2tag); err == nil && status == http.StatusOK {
		if part, err := discovery.NewFragment(body, pathOf(r.gv)); err == nil {
			f.v2, f.v2tag = part, h.Get("ETag")
		}
	} else if err == nil && status != http.StatusNotModified {
		f.v2, f.v2tag = nil, ""
	}
	status, _, body, _, err := r.get(ctx, "/openapi/v3", mediaJSON, "")
	if err != nil {
		return
	}
	f.v3 = ""
	var index struct {
		Paths map[string]struct {
			ServerRelativeURL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if status == http.StatusOK && json.Unmarshal(body, &index) == nil {
		if e, ok := index.Paths[strings.TrimPrefix(pathOf(r.gv), "/")]; ok && strings.HasPrefix(e.ServerRelativeURL, openapiV3) {
			f.v3 = e.ServerRelativeURL
		}
	}
}

// readDiscovery asks for the group version's resources.
func (r *remote) readDiscovery(ctx context.Context, f *findings) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	root := "/apis"
	if r.gv.Group == "" {
		root = "/api"
	}
	accept := fmt.Sprintf(mediaGroups, "v2") + "," + fmt.Sprintf(mediaGroups, "v2beta1")
	status, h, body, at, err := r.get(ctx, root, accept, f.etag)
	switch {
	case err != nil:
		return err
	case status == http.StatusNotModified:
		return nil
	case status == http.StatusServiceUnavailable:
		return fmt.Errorf("%s: status %d", at, status)
	case status == http.StatusOK && strings.Contains(h.Get("Content-Type"), "as=APIGroupDiscoveryList"):
		var list apidiscovery.APIGroupDiscoveryList // v2beta1 has the same fields
		if err := json.Unmarshal(body, &list); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		f.etag = h.Get("ETag")
		f.discovery = apidiscovery.APIVersionDiscovery{Version: r.gv.Version}
		for _, g := range list.Items {
			for _, v := range g.Versions {
				if g.Name == r.gv.Group && v.Version == r.gv.Version {
					f.discovery.Resources = v.Resources
				}
			}
		}
	default: // a server from before aggregated discovery
		if status, _, body, at, err = r.get(ctx, pathOf(r.gv), mediaJSON, ""); err != nil {
			return err
		}
		var list metav1.APIResourceList
		if status != http.StatusOK {
			return fmt.Errorf("%s: status %d", at, status)
		}
		if err := json.Unmarshal(body, &list); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		f.etag = ""
		f.discovery = apidiscovery.APIVersionDiscovery{Version: r.gv.Version, Resources: discovery.FromList(r.gv, list.APIResources)}
	}
	for i := range f.discovery.Resources { // some clients read the kind without looking whether there is one
		res := &f.discovery.Resources[i]
		if res.ResponseKind == nil {
			res.ResponseKind = &metav1.GroupVersionKind{}
		}
		for j := range res.Subresources {
			if res.Subresources[j].ResponseKind == nil {
				res.Subresources[j].ResponseKind = &metav1.GroupVersionKind{}
			}
		}
	}
	return nil
}

// describe is what discovery shows.
func (r *remote) describe(gv schema.GroupVersion) discovery.Remote {
	f := r.found.Load()
	d := f.discovery
	d.Freshness = apidiscovery.DiscoveryFreshnessCurrent
	if f.stale() {
		d.Freshness = apidiscovery.DiscoveryFreshnessStale
	}
	return discovery.Remote{GroupVersion: gv, Discovery: d, OpenAPIv2: f.v2, OpenAPIv3: f.v3}
}
