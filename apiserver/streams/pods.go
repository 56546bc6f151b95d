package streams

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// unavailable is the answer when a peer cannot be reached.
func unavailable(err error) metav1.Status {
	return metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable,
		Message: "error trying to reach service: " + err.Error(),
	}
}

// container checks the container that the client names, or takes the only one.
func container(pod *corev1.Pod, name string) (string, error) {
	names := func(list []corev1.Container) []string {
		out := make([]string, 0, len(list))
		for i := range list {
			out = append(out, list[i].Name)
		}
		return out
	}
	ordinary, init := names(pod.Spec.Containers), names(pod.Spec.InitContainers)
	var debug []string
	for i := range pod.Spec.EphemeralContainers {
		debug = append(debug, pod.Spec.EphemeralContainers[i].Name)
	}
	if name == "" {
		if len(ordinary) == 1 {
			return ordinary[0], nil
		}
		if len(ordinary) == 0 {
			return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s", pod.Name))
		}
		msg := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, strings.Join(ordinary, " "))
		if len(init) > 0 {
			msg += fmt.Sprintf(" or one of the init containers: [%s]", strings.Join(init, " "))
		}
		if len(debug) > 0 {
			msg += fmt.Sprintf(" or one of the ephemeral containers: [%s]", strings.Join(debug, " "))
		}
		return "", apierrors.NewBadRequest(msg)
	}
	for _, list := range [][]string{ordinary, init, debug} {
		for _, n := range list {
			if n == name {
				return name, nil
			}
		}
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
}

// on reads a parameter that is true or false: whatever is said but "false" and "0" is true, def where nothing is.
func on(in url.Values, name string, def bool) bool {
	if !in.Has(name) {
		return def
	}
	v := strings.ToLower(in.Get(name))
	return v != "false" && v != "0"
}

// Exec runs a command in a container.
func (p *Proxy) Exec(w http.ResponseWriter, r *http.Request, t Target) { p.command(w, r, t, "exec") }

// Attach connects to the main process of a container.
func (p *Proxy) Attach(w http.ResponseWriter, r *http.Request, t Target) {
	p.command(w, r, t, "attach")
}

func (p *Proxy) command(w http.ResponseWriter, r *http.Request, t Target, verb string) {
	in := r.URL.Query()
	pod, err := p.pod(t)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	stdin, tty := on(in, "stdin", false), on(in, "tty", false)
	stdout, stderr := on(in, "stdout", true), on(in, "stderr", !tty)
	var errs field.ErrorList
	if !stdin && !stdout && !stderr {
		errs = append(errs, field.Required(field.NewPath("stdin"), "at least one of stdin, stdout, stderr must be true"))
	}
	if tty && stderr {
		stderr = false // a terminal has one output
	}
	if verb == "exec" && len(in["command"]) == 0 {
		errs = append(errs, field.Required(field.NewPath("command"), "you must specify at least 1 command for the container"))
	}
	name, err := container(pod, in.Get("container"))
	if err == nil && pod.Spec.NodeName == "" {
		err = apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	if err != nil {
		p.fail(w, r, err)
		return
	}
	q := url.Values{}
	for name, set := range map[string]bool{"input": stdin, "output": stdout, "error": stderr, "tty": tty} {
		if set {
			q.Set(name, "1")
		}
	}
	if verb == "exec" {
		q["command"] = in["command"]
	}
	to, err := p.kubeletURL(pod, "/"+verb+"/"+pod.Namespace+"/"+pod.Name+"/"+name, q)
	if err == nil && len(errs) > 0 {
		err = apierrors.NewBadRequest(errs.ToAggregate().Error())
	}
	if err != nil {
		p.fail(w, r, err)
		return
	}
	p.forward(w, r, to, p.kubelet, false, true)
}

// PortForward connects to ports of a pod.
func (p *Proxy) PortForward(w http.ResponseWriter, r *http.Request, t Target) {
	q := url.Values{}
	for _, v := range r.URL.Query()["ports"] {
		for _, one := range strings.Split(v, ",") {
			n, err := strconv.ParseUint(one, 10, 16)
			if err == nil && n == 0 {
				err = errors.New("0 is no port")
			}
			if err != nil {
				p.fail(w, r, apierrors.NewBadRequest("cannot convert to []int32: "+err.Error()))
				return
			}
			q.Add("port", one)
		}
	}
	pod, err := p.pod(t)
	if err == nil && pod.Spec.NodeName == "" {
		err = apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	if err != nil {
		p.fail(w, r, err)
		return
	}
	to, err := p.kubeletURL(pod, "/portForward/"+pod.Namespace+"/"+pod.Name, q)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	p.forward(w, r, to, p.kubelet, false, true)
}

// logQuery checks PodLogOptions and turns them into the kubelet's parameters. err is what cannot be read at all.
func logQuery(in url.Values) (q url.Values, errs field.ErrorList, err error) {
	q = url.Values{}
	number := func(name string, min int64, rule string) {
		if !in.Has(name) || err != nil {
			return
		}
		var n int64
		if n, err = strconv.ParseInt(in.Get(name), 10, 64); err == nil && n < min {
			errs = append(errs, field.Invalid(field.NewPath(name), n, rule))
		}
		q.Set(name, in.Get(name))
	}
	for _, name := range []string{"follow", "previous", "timestamps"} {
		if on(in, name, false) {
			q.Set(name, "true")
		}
	}
	number("tailLines", 0, "must be greater than or equal to 0")
	number("limitBytes", 1, "must be greater than 0")
	number("sinceSeconds", 1, "must be greater than 0")
	if v := in.Get("sinceTime"); v != "" && err == nil {
		_, err = time.Parse(time.RFC3339, v)
		if q.Has("sinceSeconds") {
			errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
		}
		q.Set("sinceTime", v)
	}
	switch s := in.Get("stream"); s {
	case "", "All":
	case "Stdout", "Stderr":
		if q.Has("tailLines") {
			errs = append(errs, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive for now"))
		}
		q.Set("stream", s)
	default:
		errs = append(errs, field.NotSupported(field.NewPath("stream"), s, []string{"All", "Stderr", "Stdout"}))
	}
	if err != nil {
		err = apierrors.NewBadRequest(err.Error())
	}
	return q, errs, err
}

// Log copies a container's log, flushing as it comes.
func (p *Proxy) Log(w http.ResponseWriter, r *http.Request, t Target) {
	in := r.URL.Query()
	q, errs, err := logQuery(in)
	if err == nil && len(errs) > 0 {
		err = apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("PodLogOptions").GroupKind(), t.Name, errs)
	}
	var pod *corev1.Pod
	if err == nil {
		pod, err = p.pod(t)
	}
	name := ""
	if err == nil {
		name, err = container(pod, in.Get("container"))
	}
	if err != nil {
		p.fail(w, r, err)
		return
	}
	if pod.Spec.NodeName == "" { // nothing has been written yet
		w.WriteHeader(http.StatusNoContent)
		return
	}
	to, err := p.kubeletURL(pod, "/containerLogs/"+pod.Namespace+"/"+pod.Name+"/"+name, q)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	via := p.kubelet
	if on(in, "insecureSkipTLSVerifyBackend", false) {
		via = p.logs
	}
	rq, err := http.NewRequestWithContext(r.Context(), http.MethodGet, to.String(), nil)
	if err != nil {
		p.fail(w, r, apierrors.NewInternalError(err))
		return
	}
	resp, err := via.RoundTrip(rq)
	if err != nil {
		p.fail(w, r, apierrors.NewInternalError(fmt.Errorf("Get %q: %w", to.Redacted(), err)))
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		p.fail(w, r, refused(resp.StatusCode, t.Name, strings.TrimSpace(string(body))))
		return
	}
	if websocket.IsWebSocketUpgrade(r) {
		toSocket(w, r, resp.Body)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	copyFlushing(w, resp.Body)
}

// refused passes on what the kubelet says of a request for a log.
func refused(code int, pod, text string) error {
	switch code {
	case http.StatusBadRequest:
		return apierrors.NewBadRequest(text)
	case http.StatusInternalServerError:
		return apierrors.NewInternalError(errors.New(text))
	}
	return apierrors.NewGenericServerResponse(code, "", corev1.Resource("pods/log"), pod, text, 0, false)
}

// copyFlushing sends what has come before it waits for more.
func copyFlushing(w http.ResponseWriter, r io.Reader) {
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			if rc.Flush() != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
