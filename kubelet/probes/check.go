// Package probes runs the startup, liveness and readiness probes of containers.
package probes

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// outputLimitBytes bounds what is read of a probe's answer.
const outputLimitBytes = 10 << 10

// userAgent is what probed servers see. Source: Kubernetes documentation,
// "Configure Liveness, Readiness and Startup Probes", HTTP probes.
const userAgent = "kube-probe/1.36"

// attempt is one run of a probe.
type attempt struct {
	Outcome Result // Unknown: the question could not be asked; Message says why
	Warning bool   // Passed, but users should look at Message
	Message string
}

// question says where and what to ask.
type question struct {
	ID        string // container ID
	IP        string // the pod's
	Container *corev1.Container
	Spec      *corev1.Probe
}

// check asks once. It returns within the probe's timeout.
func (m *Manager) check(ctx context.Context, t question) attempt {
	timeout := time.Duration(atLeast(t.Spec.TimeoutSeconds, 1)) * time.Second
	switch {
	case t.Spec.Exec != nil:
		return m.checkExec(ctx, t, timeout)
	case t.Spec.HTTPGet != nil:
		return checkHTTP(ctx, t, timeout)
	case t.Spec.TCPSocket != nil:
		return checkTCP(ctx, t, timeout)
	case t.Spec.GRPC != nil:
		return checkGRPC(ctx, t, timeout)
	}
	return attempt{Message: "missing probe handler for " + t.Container.Name}
}

func (m *Manager) checkExec(ctx context.Context, t question, timeout time.Duration) attempt {
	command := make([]string, len(t.Spec.Exec.Command))
	env := map[string]string{}
	for _, e := range t.Container.Env {
		if e.ValueFrom == nil {
			env[e.Name] = e.Value
		}
	}
	for i, word := range t.Spec.Exec.Command {
		command[i] = expand(word, env)
	}
	out, code, err := m.exec(ctx, t.ID, command, timeout)
	if len(out) > outputLimitBytes {
		out = out[:outputLimitBytes]
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return attempt{Outcome: Failed, Message: fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(command, " "), timeout)}
	case err != nil:
		return attempt{Message: err.Error()}
	case code != 0:
		return attempt{Outcome: Failed, Message: string(out)}
	}
	return attempt{Outcome: Passed, Message: string(out)}
}

// expand replaces $(NAME) by values that are known from the spec alone; $$ is a
// dollar sign, an unknown name stays as it is. Source: Kubernetes API reference,
// Container v1 core, "command".
func expand(s string, env map[string]string) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if s[i+1] == '$' {
			b.WriteByte('$')
			i++
			continue
		}
		end := strings.IndexByte(s[i:], ')')
		if s[i+1] != '(' || end < 0 {
			b.WriteByte('$')
			continue
		}
		if value, ok := env[s[i+2:i+end]]; ok {
			b.WriteString(value)
		} else {
			b.WriteString(s[i : i+end+1])
		}
		i += end
	}
	return b.String()
}

// dialer closes with a linger of one second, so that thousands of probes do not
// leave thousands of sockets waiting.
var dialer = net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 1})
	})
}}

var httpTransport = &http.Transport{
	TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, // the API says: certificates are not verified
	DialContext:        dialer.DialContext,
	ForceAttemptHTTP2:  true,
	DisableKeepAlives:  true,
	DisableCompression: true,
}

// stayOnHost follows redirects to the same host only; another host ends the probe
// with the redirect as its answer.
func stayOnHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

func checkHTTP(ctx context.Context, t question, timeout time.Duration) attempt {
	req, err := HTTPRequest(ctx, t.Spec.HTTPGet, t.Container, t.IP, userAgent)
	if err != nil {
		return attempt{Message: err.Error()}
	}
	client := &http.Client{Timeout: timeout, Transport: httpTransport, CheckRedirect: stayOnHost}
	res, err := client.Do(req)
	if err != nil {
		return attempt{Outcome: Failed, Message: err.Error()}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, outputLimitBytes))
	switch {
	case err != nil:
		return attempt{Outcome: Failed, Message: err.Error()}
	case res.StatusCode >= 300 && res.StatusCode < 400:
		return attempt{Outcome: Passed, Warning: true, Message: "Probe terminated redirects, Response body: " + string(body)}
	case res.StatusCode >= 200 && res.StatusCode < 300:
		return attempt{Outcome: Passed, Message: string(bytes.TrimSpace(body))}
	}
	return attempt{Outcome: Failed, Message: fmt.Sprintf("HTTP probe failed with statuscode: %d", res.StatusCode)}
}

// HTTPRequest is the request that an HTTPGetAction stands for; lifecycle hooks use
// it as well, under their own user agent. An explicit empty Accept header removes
// the default one; a Host header sets the name asked for.
func HTTPRequest(ctx context.Context, get *corev1.HTTPGetAction, c *corev1.Container, podIP, agent string) (*http.Request, error) {
	port, err := Port(get.Port, c)
	if err != nil {
		return nil, err
	}
	host := get.Host
	if host == "" {
		host = podIP
	}
	u, err := url.Parse(get.Path)
	if err != nil {
		u = &url.URL{Path: get.Path}
	}
	u.Scheme = "http"
	if get.Scheme != "" {
		u.Scheme = strings.ToLower(string(get.Scheme))
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range get.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", agent)
	}
	if _, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if req.Header.Get("Accept") == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req, nil
}

// Port resolves a number or the name of one of the container's ports.
func Port(port intstr.IntOrString, c *corev1.Container) (int, error) {
	n := port.IntValue()
	if port.Type == intstr.String {
		found := false
		for _, candidate := range c.Ports {
			if candidate.Name == port.StrVal {
				n, found = int(candidate.ContainerPort), true
				break
			}
		}
		if !found && n == 0 {
			return 0, fmt.Errorf("couldn't find port: %v in container %s", port.String(), c.Name)
		}
	}
	if n <= 0 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", n)
	}
	return n, nil
}

func checkTCP(ctx context.Context, t question, timeout time.Duration) attempt {
	port, err := Port(t.Spec.TCPSocket.Port, t.Container)
	if err != nil {
		return attempt{Message: err.Error()}
	}
	host := t.Spec.TCPSocket.Host
	if host == "" {
		host = t.IP
	}
	d := dialer
	d.Timeout = timeout
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return attempt{Outcome: Failed, Message: err.Error()}
	}
	_ = conn.Close()
	return attempt{Outcome: Passed}
}
