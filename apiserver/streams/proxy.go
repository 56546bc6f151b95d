package streams

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/keelson/keelson/apiserver/resources"
)

// splitName reads "[scheme:]name[:port]" as it stands in proxy paths.
//
// Source: Kubernetes documentation, "Manually constructing apiserver proxy URLs".
func splitName(s string) (scheme, name, port string, ok bool) {
	parts := strings.Split(s, ":")
	switch len(parts) {
	case 1:
		return "", parts[0], "", parts[0] != ""
	case 2:
		return "", parts[0], parts[1], parts[0] != ""
	case 3:
		if parts[0] != "" && parts[0] != "http" && parts[0] != "https" || parts[1] == "" {
			return "", "", "", false
		}
		return parts[0], parts[1], parts[2], true
	}
	return "", "", "", false
}

func (p *Proxy) badName(w http.ResponseWriter, r *http.Request, kind, name string) {
	p.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("invalid %s request %q", kind, name)))
}

// through forwards a proxy request; the client's path stays its own, the peer sees only rest.
func (p *Proxy) through(w http.ResponseWriter, r *http.Request, to *url.URL, via *http.Transport, t Target) {
	if t.Rest == "" && !strings.HasSuffix(r.URL.Path, "/") && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		// Relative links of the page would lead nowhere without the slash.
		u := *r.URL
		u.Path += "/"
		w.Header().Set("Location", u.String())
		w.WriteHeader(http.StatusMovedPermanently)
		return
	}
	to.Path = "/" + t.Rest
	to.RawQuery = r.URL.RawQuery
	p.forward(w, r, to, via, true, false)
}

// PodProxy forwards an HTTP request to a pod: "[scheme:]name[:port]".
func (p *Proxy) PodProxy(w http.ResponseWriter, r *http.Request, t Target) {
	scheme, name, port, ok := splitName(t.Name)
	if !ok {
		p.badName(w, r, "pod", t.Name)
		return
	}
	pod, err := p.pod(Target{Namespace: t.Namespace, Name: name})
	if err != nil {
		p.fail(w, r, err)
		return
	}
	if port == "" {
		for i := range pod.Spec.Containers {
			if ports := pod.Spec.Containers[i].Ports; len(ports) > 0 {
				port = strconv.Itoa(int(ports[0].ContainerPort))
				break
			}
		}
	} else if _, err := strconv.Atoi(port); err != nil {
		port = namedPort(pod, port)
		if port == "" {
			p.badName(w, r, "pod", t.Name)
			return
		}
	}
	if pod.Status.PodIP == "" {
		p.fail(w, r, apierrors.NewBadRequest("address not allowed: the pod has no IP address yet"))
		return
	}
	p.through(w, r, hostURL(scheme, pod.Status.PodIP, port), p.pods, t)
}

func namedPort(pod *corev1.Pod, name string) string {
	for i := range pod.Spec.Containers {
		for _, cp := range pod.Spec.Containers[i].Ports {
			if cp.Name == name {
				return strconv.Itoa(int(cp.ContainerPort))
			}
		}
	}
	return ""
}

func hostURL(scheme, host, port string) *url.URL {
	if scheme == "" {
		scheme = "http"
	}
	u := &url.URL{Scheme: scheme, Host: host}
	if strings.Contains(host, ":") {
		u.Host = "[" + host + "]"
	}
	if port != "" {
		u.Host = net.JoinHostPort(host, port)
	}
	return u
}

// ServiceProxy forwards an HTTP request to any ready endpoint of a service:
// "[scheme:]name[:port name or number]".
func (p *Proxy) ServiceProxy(w http.ResponseWriter, r *http.Request, t Target) {
	scheme, name, port, ok := splitName(t.Name)
	if !ok {
		p.badName(w, r, "service", t.Name)
		return
	}
	to, err := p.endpoint(t.Namespace, name, port)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	host, portText, err := net.SplitHostPort(to)
	if err != nil {
		p.fail(w, r, apierrors.NewInternalError(err))
		return
	}
	p.through(w, r, hostURL(scheme, host, portText), p.pods, t)
}

// endpoint picks a ready address of the service port at random.
func (p *Proxy) endpoint(namespace, name, port string) (string, error) {
	svc, err := resources.Lookup[corev1.Service](p.read, grServices, namespace, name)
	if err != nil {
		return "", err
	}
	if svc == nil {
		return "", apierrors.NewNotFound(grServices, name)
	}
	var want *corev1.ServicePort
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		if port == "" && len(svc.Spec.Ports) == 1 || sp.Name != "" && sp.Name == port || strconv.Itoa(int(sp.Port)) == port {
			want = sp
			break
		}
	}
	missing := apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	if want == nil {
		if _, err := strconv.Atoi(port); err != nil {
			port = strconv.Quote(port)
		}
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %s found for service %q", port, name))
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(want.Port))), nil
	}
	var all []string
	err = p.read.Each(grSlices, namespace, func(o resources.Object) bool {
		es, ok := o.(*discoveryv1.EndpointSlice)
		if !ok || es.Labels[discoveryv1.LabelServiceName] != name {
			return true
		}
		for _, ep := range es.Ports {
			if ep.Port == nil || ep.Name == nil && want.Name != "" || ep.Name != nil && *ep.Name != want.Name {
				continue
			}
			for _, e := range es.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
					continue
				}
				all = append(all, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*ep.Port))))
			}
		}
		return true
	})
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", missing
	}
	return all[rand.IntN(len(all))], nil
}

// NodeProxy forwards an HTTP request to a node: its kubelet, or another port of the machine.
func (p *Proxy) NodeProxy(w http.ResponseWriter, r *http.Request, t Target) {
	scheme, name, port, ok := splitName(t.Name)
	if !ok {
		p.badName(w, r, "node", t.Name)
		return
	}
	host, kubeletPort, err := p.node(name)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	if port == "" || port == strconv.Itoa(kubeletPort) {
		p.through(w, r, hostURL("https", host, strconv.Itoa(kubeletPort)), p.kubelet, t)
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		p.badName(w, r, "node", t.Name)
		return
	}
	p.through(w, r, hostURL(scheme, host, port), p.pods, t)
}

// Reach opens a connection to a service port, for webhooks and aggregated APIs.
func (p *Proxy) Reach(namespace, name, port string) (hostPort string, err error) {
	return p.endpoint(namespace, name, port)
}
