// Package server is the kubelet's own HTTPS port: logs, exec, attach, port-forward, what
// runs here, and how much it uses.
//
//	/containerLogs/{namespace}/{pod}/{container}                 logs.go
//	/exec, /attach/{namespace}/{pod}[/{uid}]/{container}         streams.go
//	/portForward/{namespace}/{pod}[/{uid}]                       streams.go
//	/pods  /runningpods/  /logs/                                 pods as JSON; files of /var/log
//	/stats/summary  /metrics/resource  /metrics/cadvisor  /metrics/probes
//	/metrics  /configz  /healthz  /debug/...                     libs/serve
//
// The main call is Server.Run. It promises that nobody gets an answer, be it of a health
// check, without being known (a certificate of the client CA, or a bearer token that the API server vouches for)
// and allowed by the API server, by upstream's attributes: the verb of the HTTP method on
// nodes/<subresource> of this node. It keeps no stream of its own longer than the client
// stays, and knows pods only through Pods.
//
// Handlers run on the goroutines of their requests; those that they start are ended before
// they return. A second, plain port on the loopback address answers /healthz to whoever
// watches the process. Tests: logs and streams against files and a small streaming server.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/libs/serve"
)

// Options are the ports and who may use them. Flags have upstream's names.
type Options struct {
	Address           string `yaml:"address" flag:"address" help:"address to listen on"`
	Port              int    `yaml:"port" flag:"port" help:"port of the HTTPS server; 0 does not listen"`
	TLSCertFile       string `yaml:"tlsCertFile" flag:"tls-cert-file" help:"serving certificate (PEM, with intermediates); empty makes one in memory"`
	TLSPrivateKeyFile string `yaml:"tlsPrivateKeyFile" flag:"tls-private-key-file" help:"key of the serving certificate (PEM)"`

	ClientCAFile               string `yaml:"clientCAFile" flag:"client-ca-file" help:"CA certificates (PEM) that vouch for clients"`
	AnonymousAuth              bool   `yaml:"anonymousAuth" flag:"anonymous-auth" help:"let callers without credentials be system:anonymous, for authorization to decide on"`
	AuthenticationTokenWebhook bool   `yaml:"authenticationTokenWebhook" flag:"authentication-token-webhook" help:"ask the API server about bearer tokens"`
	AuthorizationMode          string `yaml:"authorizationMode" flag:"authorization-mode" help:"Webhook asks the API server what a caller may do; AlwaysAllow lets every caller who is known do everything"`

	HealthzBindAddress string `yaml:"healthzBindAddress" flag:"healthz-bind-address" help:"address of the plain port that answers /healthz"`
	HealthzPort        int    `yaml:"healthzPort" flag:"healthz-port" help:"port that answers /healthz without TLS; 0 does not listen"`

	// Listener, when set, is used in place of Address and Port.
	Listener net.Listener `yaml:"-"`
}

// DefaultOptions are upstream's, without anonymous access.
func DefaultOptions() Options {
	return Options{Address: "0.0.0.0", Port: 10250, AuthenticationTokenWebhook: true, AuthorizationMode: "Webhook",
		HealthzBindAddress: "127.0.0.1", HealthzPort: 10248}
}

// Validate reports every fault.
func (o Options) Validate() field.ErrorList {
	var errs field.ErrorList
	port := func(name string, n int) {
		if n < 0 || n > 65535 {
			errs = append(errs, field.Invalid(field.NewPath(name), n, "must be between 0 and 65535"))
		}
	}
	port("port", o.Port)
	port("healthzPort", o.HealthzPort)
	for name, address := range map[string]string{"address": o.Address, "healthzBindAddress": o.HealthzBindAddress} {
		if address != "" && net.ParseIP(address) == nil {
			errs = append(errs, field.Invalid(field.NewPath(name), address, "must be an IP address"))
		}
	}
	if (o.TLSCertFile == "") != (o.TLSPrivateKeyFile == "") {
		errs = append(errs, field.Invalid(field.NewPath("tlsPrivateKeyFile"), o.TLSPrivateKeyFile, "certificate and key must both be set, or neither"))
	}
	if o.AuthorizationMode != "Webhook" && o.AuthorizationMode != "AlwaysAllow" {
		errs = append(errs, field.NotSupported(field.NewPath("authorizationMode"), o.AuthorizationMode, []string{"Webhook", "AlwaysAllow"}))
	}
	if o.AuthorizationMode == "AlwaysAllow" && o.AnonymousAuth {
		errs = append(errs, field.Invalid(field.NewPath("anonymousAuth"), o.AnonymousAuth, "together with authorizationMode AlwaysAllow anybody could run commands in every pod"))
	}
	return errs
}

// Surroundings are the other parts of the kubelet.
type Surroundings struct {
	NodeName string
	Pods     Pods
	Stats    *Stats
	// Probes is what /metrics/probes shows. May be nil.
	Probes  prometheus.Collector
	Client  kubernetes.Interface // nil: any certificate of the client CA may do everything
	Runtime runtimeapi.RuntimeServiceClient
	Log     *slog.Logger
}

// Server is the kubelet's port. Checks, /debug rooms and /configz are added through the
// embedded server.
type Server struct {
	*serve.Server
	healthz *serve.Server
	s       Surroundings
	log     *slog.Logger

	pingEvery time.Duration // on WebSockets
	requests  *requestMetrics
}

// New reads the certificates and lays out the paths.
func New(o Options, s Surroundings) (*Server, error) {
	main, err := serve.New(serve.Config{BindAddress: o.Address, Port: o.Port, TLSCertFile: o.TLSCertFile, TLSPrivateKeyFile: o.TLSPrivateKeyFile,
		ClientCAFile: o.ClientCAFile, Listener: o.Listener, GuardHealth: true}, s.Log)
	if err != nil {
		return nil, err
	}
	healthz, err := serve.New(serve.Config{BindAddress: o.HealthzBindAddress, Port: o.HealthzPort, Plain: true, Silent: true}, s.Log)
	if err != nil {
		return nil, err
	}
	server := &Server{Server: main, healthz: healthz, s: s, log: s.Log, pingEvery: defaultPingEvery, requests: newRequestMetrics(main.Registry())}
	if s.Client != nil {
		main.Authorize(authorizer(o, serve.NewReviewer(s.Client, o.ClientCAFile), s.NodeName))
	}
	for _, method := range []string{"GET", "POST"} {
		for _, uid := range []string{"", "/{uid}"} {
			server.handle(method+" /exec/{namespace}/{pod}"+uid+"/{container}", http.HandlerFunc(server.exec))
			server.handle(method+" /attach/{namespace}/{pod}"+uid+"/{container}", http.HandlerFunc(server.attach))
			server.handle(method+" /portForward/{namespace}/{pod}"+uid, http.HandlerFunc(server.portForward))
		}
	}
	server.handle("GET /containerLogs/{namespace}/{pod}/{container}", http.HandlerFunc(server.containerLogs))
	server.handle("GET /pods", http.HandlerFunc(server.pods))
	server.handle("GET /pods/{$}", http.HandlerFunc(server.pods))
	server.handle("GET /runningpods", http.HandlerFunc(server.runningPods))
	server.handle("GET /runningpods/{$}", http.HandlerFunc(server.runningPods))
	server.handle("GET /logs/", http.StripPrefix("/logs/", http.FileServer(http.Dir("/var/log"))))
	if s.Stats != nil {
		server.handle("GET /stats/summary", http.HandlerFunc(server.summary))
		server.handle("GET /metrics/resource", metrics(resourceMetrics{s.Stats}))
		server.handle("GET /metrics/cadvisor", metrics(containerMetrics{s.Stats}))
	}
	if s.Probes != nil {
		server.handle("GET /metrics/probes", metrics(s.Probes))
	}
	return server, nil
}

// Run serves both ports until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	g := run.New(ctx)
	g.Go("server", s.Server.Run)
	g.Go("healthz", s.healthz.Run)
	return g.Wait()
}

func metrics(c prometheus.Collector) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// authorizer asks the API server about each caller.
func authorizer(o Options, v *serve.Reviewer, node string) func(*http.Request) error {
	return func(r *http.Request) error {
		token := r.Header.Get("Authorization") != ""
		if token && !o.AuthenticationTokenWebhook {
			r = r.Clone(r.Context())
			r.Header.Del("Authorization")
		}
		user, err := v.Authenticate(r)
		if err != nil && o.AnonymousAuth && !token {
			user, err = &authenticationv1.UserInfo{Username: "system:anonymous", Groups: []string{"system:unauthenticated"}}, nil
		}
		if err != nil || o.AuthorizationMode == "AlwaysAllow" {
			return err
		}
		verb := verbs[r.Method]
		names := subresources(r.URL.Path)
		for _, name := range names {
			err = v.Allowed(r.Context(), user, authorizationv1.SubjectAccessReviewSpec{
				ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: name, Name: node},
			})
			if err == nil {
				return nil
			}
		}
		if len(names) > 1 {
			return fmt.Errorf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", user.Username, verb, names)
		}
		return err
	}
}

var verbs = map[string]string{"POST": "create", "GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

// subresources are those of nodes that a path belongs to; any of them is enough. Source:
// Kubernetes documentation, "Kubelet authentication/authorization", fine-grained
// authorization.
func subresources(path string) []string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "stats":
		return []string{"stats"}
	case "metrics":
		return []string{"metrics"}
	case "logs":
		return []string{"log"}
	case "pods", "runningpods":
		return []string{"pods", "proxy"}
	case "healthz", "configz":
		return []string{first, "proxy"}
	}
	return []string{"proxy"}
}

// target finds the pod of a request; it has answered when ok is false.
func (s *Server) target(w http.ResponseWriter, r *http.Request) (pod *corev1.Pod, ok bool) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	pod, ok = s.s.Pods.Pod(namespace, name, types.UID(r.PathValue("uid")))
	if !ok {
		http.Error(w, fmt.Sprintf("pod %q does not exist", name), http.StatusNotFound)
	}
	return pod, ok
}

func hasContainer(pod *corev1.Pod, name string) bool {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return true
			}
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return true
		}
	}
	return false
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.s.Pods.Pods() {
		list.Items = append(list.Items, *p)
	}
	writeJSON(w, &list)
}

// runningPods are those of the runtime, whether anybody wants them or not.
func (s *Server) runningPods(w http.ResponseWriter, r *http.Request) {
	answer, err := s.s.Runtime.ListContainers(r.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	index := map[string]int{}
	for _, c := range answer.Containers {
		uid := c.Labels[labelPodUID]
		i, ok := index[uid]
		if !ok {
			i = len(list.Items)
			index[uid] = i
			list.Items = append(list.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: c.Labels[labelPodName], Namespace: c.Labels[labelPodNamespace], UID: types.UID(uid)}})
		}
		list.Items[i].Spec.Containers = append(list.Items[i].Spec.Containers, corev1.Container{Name: c.Labels[labelContainer], Image: c.GetImage().GetImage()})
	}
	writeJSON(w, &list)
}

// Labels that the kubelet gives to sandboxes and containers.
const (
	labelPodName      = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
	labelPodUID       = "io.kubernetes.pod.uid"
	labelContainer    = "io.kubernetes.container.name"
)

func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
	defer cancel()
	summary, err := s.s.Stats.Summary(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, summary)
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data) // the client has gone: nobody to tell
}

// containerLogs answers with a container's log.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	o, err := logOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod, ok := s.target(w, r)
	if !ok {
		return
	}
	name := r.PathValue("container")
	if !hasContainer(pod, name) {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", name, pod.Name), http.StatusNotFound)
		return
	}
	c, ok := s.s.Pods.Container(pod.UID, name, o.Previous)
	if !ok {
		http.Error(w, noLogs(pod, name, o.Previous).Error(), http.StatusBadRequest)
		return
	}
	running := func() bool {
		status, err := s.s.Runtime.ContainerStatus(r.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
		return err == nil && status.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	w.Header().Set("Content-Type", "text/plain")
	out := &flusher{w: w}
	if f, ok := w.(http.Flusher); ok {
		out.f = f
	}
	if o.Follow {
		out.flush() // a client that follows wants to know that it is connected
	}
	if err := ReadLog(r.Context(), c.LogPath, o, running, out); err != nil && !errors.Is(err, context.Canceled) {
		if !out.written {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.log.Debug("log stream ended early", "pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID, "container", name, "err", err)
	}
}

// noLogs says why a container has no log, in upstream's words.
func noLogs(pod *corev1.Pod, name string, previous bool) error {
	if previous {
		return fmt.Errorf("previous terminated container %q in pod %q not found", name, pod.Name)
	}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name != name {
				continue
			}
			switch waiting := list[i].State.Waiting; {
			case waiting == nil && list[i].State.Terminated != nil:
				return fmt.Errorf("container %q in pod %q is terminated", name, pod.Name)
			case waiting == nil:
				return fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", name, pod.Name)
			case waiting.Reason == "ErrImagePull":
				return fmt.Errorf("container %q in pod %q is waiting to start: image can't be pulled", name, pod.Name)
			case waiting.Reason == "ImagePullBackOff":
				return fmt.Errorf("container %q in pod %q is waiting to start: trying and failing to pull image", name, pod.Name)
			default:
				return fmt.Errorf("container %q in pod %q is waiting to start: %v", name, pod.Name, waiting.Reason)
			}
		}
	}
	return fmt.Errorf("container %q in pod %q is not available", name, pod.Name)
}
