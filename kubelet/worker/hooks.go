package worker

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hook carries out a lifecycle handler until ctx ends. The message is for the container's
// status; secrets that a command may print stay out of events.
func (w *worker) hook(ctx context.Context, o *corev1.Pod, c *corev1.Container, id, ip string, h *corev1.LifecycleHandler) (string, error) {
	switch {
	case h.Exec != nil:
		answer, err := w.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: h.Exec.Command, Timeout: 0})
		if err == nil && answer.ExitCode != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), answer.ExitCode, answer.Stderr)
		}
		if err != nil {
			out := ""
			if answer != nil {
				out = string(answer.Stdout) + string(answer.Stderr)
			}
			return fmt.Sprintf("Exec lifecycle hook (%s) for Container %q in Pod %q failed - error: %v, message: %q",
				h.Exec.Command, c.Name, o.Namespace+"/"+o.Name, err, out), err
		}
		return "", nil
	case h.HTTPGet != nil:
		if err := w.httpHook(ctx, c, ip, h.HTTPGet); err != nil {
			return fmt.Sprintf("HTTP lifecycle hook (%s) for Container %q in Pod %q failed - error: %v",
				h.HTTPGet.Path, c.Name, o.Namespace+"/"+o.Name, err), err
		}
		return "", nil
	case h.Sleep != nil:
		t := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer t.Stop()
		select {
		case <-t.C:
			return "", nil
		case <-ctx.Done():
			w.Metrics.SleepCut()
			return "container terminated before sleep hook finished", ctx.Err()
		}
	case h.TCPSocket != nil:
		// Accepted by the API for old objects, and never carried out (API reference).
		return "", nil
	}
	return "", fmt.Errorf("invalid handler: %v", h)
}

// httpHook makes the request; any answer below 400 is a success. As in upstream a server
// that talks plain HTTP on a port that was named HTTPS is tried again without TLS.
func (w *worker) httpHook(ctx context.Context, c *corev1.Container, ip string, get *corev1.HTTPGetAction) error {
	port, err := portNumber(get.Port, c)
	if err != nil {
		return err
	}
	host := get.Host
	if host == "" {
		host = ip
	}
	scheme := strings.ToLower(string(get.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // pods have no certificate that a node could check
		DisableKeepAlives: true,
	}}
	path := get.Path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	try := func(scheme string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, strconv.Itoa(port))+path, nil)
		if err != nil {
			return err
		}
		req.Header.Set("User-Agent", "kube-lifecycle/1.36")
		req.Header.Set("Accept", "*/*")
		for _, hd := range get.HTTPHeaders {
			if strings.EqualFold(hd.Name, "host") {
				req.Host = hd.Value
			}
			if hd.Value == "" {
				req.Header.Del(hd.Name)
				continue
			}
			req.Header.Add(hd.Name, hd.Value)
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 10<<10))
		if resp.StatusCode >= http.StatusBadRequest {
			return fmt.Errorf("HTTP status %d: %s", resp.StatusCode, bytes.TrimSpace(body))
		}
		return nil
	}
	err = try(scheme)
	if err != nil && scheme == "https" && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		if err = try("http"); err == nil {
			w.Metrics.PlainHook()
		}
	}
	return err
}

func portNumber(p intstr.IntOrString, c *corev1.Container) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, named := range c.Ports {
		if named.Name == p.StrVal {
			return int(named.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("couldn't find port: %v in %v", p, c.Name)
}
