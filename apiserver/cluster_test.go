package apiserver

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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

// TestMain is also the process of one server: a test that kills servers runs this
// program again with a configuration.
func TestMain(m *testing.M) {
	file := os.Getenv("KEELSON_TEST_SERVER")
	if file == "" {
		os.Exit(m.Run())
	}
	var params memberParams
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &params)
	}
	if err == nil {
		err = Run(context.Background(), params.config(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// memberParams is what the configurations of members differ in.
type memberParams struct {
	PKI, Name, DataDir, Peer, Cluster string
	Port                              int
}

func (m memberParams) config() Config {
	at := func(name string) string { return filepath.Join(m.PKI, name) }
	cfg := Default()
	cfg.BindAddress, cfg.Port = "127.0.0.1", m.Port
	cfg.TLSCertFile, cfg.TLSPrivateKeyFile, cfg.ClientCAFile = at("server.crt"), at("server.key"), at("ca.crt")
	cfg.ServiceAccountSigningKey = at("server.key")
	cfg.EndpointReconcile = "none" // a loopback address is no endpoint
	e := &cfg.Etcd
	e.Name, e.DataDir, e.InitialCluster, e.ListenPeers = m.Name, m.DataDir, m.Cluster, []string{m.Peer}
	e.PeerCertFile, e.PeerKeyFile, e.PeerTrustedCAFile = at("server.crt"), at("server.key"), at("ca.crt")
	return cfg
}

// member is a server with its etcd member, in a process of its own.
type member struct {
	url, file string
	log       string
	cmd       *exec.Cmd
}

func (m *member) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command(os.Args[0])
	m.cmd.Env = append(os.Environ(), "KEELSON_TEST_SERVER="+m.file)
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
		params := memberParams{
			PKI: p.dir, Name: fmt.Sprintf("m%d", i), DataDir: filepath.Join(t.TempDir(), "etcd"), Cluster: cluster[1:],
			Peer: fmt.Sprintf("https://127.0.0.1:%d", firstPort+10+i), Port: firstPort + i,
		}
		if errs := params.config().Validate(); len(errs) > 0 {
			t.Fatal(errs.ToAggregate())
		}
		text, err := json.Marshal(params)
		if err != nil {
			t.Fatal(err)
		}
		m := &member{url: fmt.Sprintf("https://127.0.0.1:%d", params.Port), file: filepath.Join(t.TempDir(), "config"), log: filepath.Join(t.TempDir(), "log")}
		if err := os.WriteFile(m.file, text, 0o600); err != nil {
			t.Fatal(err)
		}
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
