package apiserver

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// member is a server with its etcd member, in a process of its own.
type member struct {
	url, log string
	args     []string
	cmd      *exec.Cmd
}

func (m *member) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command(os.Args[0], m.args...)
	m.cmd.Env = append(os.Environ(), serveAs+"=1")
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (m *member) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

// members makes n servers whose etcd members are one cluster over TLS.
func members(t *testing.T, p *pki, n, firstPort int) []*member {
	t.Helper()
	p.make(t, "server", &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	cluster := ""
	for i := range n {
		cluster += fmt.Sprintf(",m%d=https://127.0.0.1:%d", i, firstPort+10+i)
	}
	var out []*member
	for i := range n {
		m := &member{url: fmt.Sprintf("https://127.0.0.1:%d", firstPort+i), log: filepath.Join(t.TempDir(), "log"), args: []string{
			"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", firstPort+i), "--tls-cert-file=" + p.file("server.crt"), "--tls-private-key-file=" + p.file("server.key"),
			"--client-ca-file=" + p.file("ca.crt"), "--service-account-signing-key-file=" + p.file("server.key"),
			"--endpoint-reconciler-type=none", // a loopback address is no endpoint
			fmt.Sprintf("--etcd-name=m%d", i), "--etcd-data-dir=" + filepath.Join(t.TempDir(), "etcd"), "--etcd-initial-cluster=" + cluster[1:],
			fmt.Sprintf("--etcd-listen-peer-urls=https://127.0.0.1:%d", firstPort+10+i), "--etcd-peer-cert-file=" + p.file("server.crt"),
			"--etcd-peer-key-file=" + p.file("server.key"), "--etcd-peer-trusted-ca-file=" + p.file("ca.crt"),
		}}
		m.start(t)
		t.Cleanup(func() {
			m.kill()
			if text, err := os.ReadFile(m.log); err == nil && t.Failed() {
				t.Logf("%s: %.6000s", m.url, text[max(0, len(text)-6000):])
			}
		})
		out = append(out, m)
	}
	return out
}

// until tries f until it succeeds, within limit.
func until(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ask(c *http.Client, method, url string, body []byte) (int, []byte, error) {
	r, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, text, err
}

func ready(c *http.Client, m *member) func() error {
	return func() error {
		code, text, err := ask(c, "GET", m.url+"/readyz", nil)
		if err == nil && code != 200 {
			err = fmt.Errorf("%d %s", code, text)
		}
		return err
	}
}

// Three servers with their etcd members are one cluster. One after the other is killed under
// a load of writes and comes back: the others go on, no write that was acknowledged is lost, Services
// made through all three at once share no address and no port, and all three
// caches show the same in the end.
func TestMembersAreKilled(t *testing.T) {
	p := newPKI(t)
	servers := members(t, p, 3, 25060)
	admin := p.client(t, "admin", "system:masters")
	for _, m := range servers {
		until(t, 3*time.Minute, m.url+" is ready", ready(admin, m))
	}
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 6 {
		m := servers[w%3]
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("c%d-%d", w, i)
				path, body := "configmaps", fmt.Sprintf(`{"metadata":{"name":%q},"data":{"k":"v"}}`, name)
				if i%4 == 0 {
					path, body = "services", fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"type":"NodePort","selector":{"a":"b"},"ports":[{"port":80}]}}`, name)
				}
				code, _, err := ask(admin, "POST", m.url+"/api/v1/namespaces/default/"+path, []byte(body))
				if err == nil && code == 201 {
					mu.Lock()
					acknowledged[path+"/"+name] = true
					mu.Unlock()
				} else {
					time.Sleep(20 * time.Millisecond) // its server is away
				}
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	for i, m := range servers {
		before := count()
		until(t, time.Minute, "writes go on", func() error {
			if count() < before+60 {
				return fmt.Errorf("%d acknowledged, %d before", count(), before)
			}
			return nil
		})
		m.kill()
		after := count()
		until(t, time.Minute, "writes through the other two go on", func() error {
			if count() < after+40 {
				return fmt.Errorf("%d acknowledged, %d when it was killed", count(), after)
			}
			return nil
		})
		other := servers[(i+1)%3]
		if code, text, err := ask(admin, "GET", other.url+"/api/v1/namespaces/default/configmaps?limit=1", nil); err != nil || code != 200 {
			t.Errorf("a consistent read of the others: %d %s %v", code, text, err)
		}
		m.start(t)
		until(t, 3*time.Minute, m.url+" is ready again", ready(admin, m))
	}
	close(stop)
	writers.Wait()

	for _, m := range servers {
		have := map[string]bool{}
		ips, ports := map[string]string{}, map[int32]string{}
		for _, path := range []string{"configmaps", "services"} {
			var list struct{ Items []corev1.Service }
			code, text, err := ask(admin, "GET", m.url+"/api/v1/namespaces/default/"+path, nil)
			if err == nil && code == 200 {
				err = json.Unmarshal(text, &list)
			}
			if err != nil || code != 200 {
				t.Fatalf("list from %s: %d %.300s %v", m.url, code, text, err)
			}
			for _, o := range list.Items {
				have[path+"/"+o.Name] = true
				if path == "configmaps" {
					continue
				}
				if other, twice := ips[o.Spec.ClusterIP]; twice {
					t.Errorf("%s and %s share %s", other, o.Name, o.Spec.ClusterIP)
				}
				ips[o.Spec.ClusterIP] = o.Name
				if n := o.Spec.Ports[0].NodePort; n != 0 {
					if other, twice := ports[n]; twice {
						t.Errorf("%s and %s share port %d", other, o.Name, n)
					}
					ports[n] = o.Name
				}
			}
		}
		lost := 0
		for name := range acknowledged {
			if !have[name] {
				lost++
				t.Errorf("%s does not know %s, whose creation was acknowledged", m.url, name)
			}
		}
		t.Logf("%s: %d writes acknowledged, %d lost, %d objects, %d node ports", m.url, len(acknowledged), lost, len(have), len(ports))
		var addresses struct {
			Items []struct {
				Metadata struct{ Name string }
			}
		}
		_, text, err := ask(admin, "GET", m.url+"/apis/networking.k8s.io/v1/ipaddresses", nil)
		if err = errors.Join(err, json.Unmarshal(text, &addresses)); err != nil {
			t.Fatal(err)
		}
		if len(addresses.Items) != len(ips)+1 { // kube-dns is in another namespace
			t.Errorf("%s: %d addresses for %d services", m.url, len(addresses.Items), len(ips)+1)
		}
	}
}
