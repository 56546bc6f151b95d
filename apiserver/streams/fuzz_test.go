package streams

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/readertest"
)

// kubelet answers upgrades with 101 and sends back what it gets; everything else with a line of text.
func kubelet(t testing.TB) (host string, port int32) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			_, _ = io.WriteString(w, "a line\n")
			return
		}
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + strings.NewReplacer("\r", "", "\n", "").Replace(r.Header.Get("Upgrade")) + "\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(conn, rw)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(srv.Close)
	ap := netip.MustParseAddrPort(srv.Listener.Addr().String())
	return ap.Addr().String(), int32(ap.Port())
}

// pipes is a listener of connections that never touch the network on the client's side.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.conns) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// Requests that want to be upgraded (WebSocket, SPDY, or nonsense) are answered with HTTP,
// forwarded or dropped; the server does not fall over.
func FuzzUpgrade(f *testing.F) {
	host, port := kubelet(f)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: host}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = port
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c"}}}}
	p, err := New(KubeletConfig{DialTimeout: 5 * time.Second}, readertest.New(node, pod), func(w http.ResponseWriter, _ *http.Request, err error) {
		code := http.StatusInternalServerError
		if s, ok := err.(apierrors.APIStatus); ok {
			code = int(s.Status().Code)
		}
		http.Error(w, err.Error(), code)
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(p.Close)
	var mu sync.Mutex
	var faults bytes.Buffer
	verbs := map[string]func(http.ResponseWriter, *http.Request, Target){
		"exec": p.Exec, "attach": p.Attach, "portforward": p.PortForward, "log": p.Log, "nodeproxy": p.NodeProxy,
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if e := recover(); e != nil && e != http.ErrAbortHandler {
				mu.Lock()
				defer mu.Unlock()
				faults.WriteString(strings.TrimSpace(http.StatusText(500)) + ": ")
				log.New(&faults, "", 0).Print(e)
				panic(http.ErrAbortHandler)
			}
		}()
		verb := verbs[strings.Trim(r.URL.Path, "/")]
		if verb == nil {
			http.NotFound(w, r)
			return
		}
		name := "p"
		if strings.Contains(r.URL.Path, "nodeproxy") {
			name = "n"
		}
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		verb(w, r.WithContext(ctx), Target{Namespace: "ns", Name: name})
	})
	l := &pipes{conns: make(chan net.Conn)}
	srv := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Second}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	f.Cleanup(func() { _ = srv.Close(); <-served })

	ws := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n"
	spdy := "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
	for _, s := range [][3]string{
		{"POST /exec?command=ls&stdout=1", spdy, "data"}, {"GET /exec?command=ls&stdin=1&tty=1", ws, "\x81\x82aaaaxx"}, {"GET /log?follow=true", ws, ""},
		{"GET /portforward?ports=80", ws, ""}, {"POST /portforward", spdy, ""}, {"GET /attach?stdin=maybe", ws, ""}, {"GET /log?tailLines=-1", "", ""},
		{"GET /log?stream=Stdout&tailLines=1", "", ""}, {"GET /nodeproxy", "Connection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n", ""},
	} {
		f.Add(s[0], s[1], []byte(s[2]))
	}
	f.Fuzz(func(t *testing.T, line, headers string, after []byte) {
		if strings.Contains(strings.ToLower(headers), "expect") {
			return // waits for the body
		}
		client, server := net.Pipe()
		defer client.Close()
		select {
		case l.conns <- server:
		case <-time.After(2 * time.Minute):
			t.Fatal("the server does not accept")
		}
		_ = client.SetDeadline(time.Now().Add(300 * time.Millisecond))
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = io.WriteString(client, line+" HTTP/1.1\r\nHost: x\r\n"+headers+"\r\n")
			_, _ = client.Write(after)
		}()
		if method, _, _ := strings.Cut(line, " "); method != "HEAD" {
			if resp, err := http.ReadResponse(bufio.NewReader(client), nil); err == nil && resp.StatusCode == 500 {
				t.Errorf("%q %q: 500", line, headers)
			}
		}
		client.Close()
		<-sent
		mu.Lock()
		defer mu.Unlock()
		if faults.Len() > 0 {
			t.Fatalf("%q %q: %s", line, headers, faults.String())
		}
	})
}
