package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func table() []Want {
	c := Cluster{Node: "one", Address: "192.0.2.1", FirstService: netip.MustParseAddr("10.96.0.1"), Domain: "cluster.local"}
	return append(ControlPlane(c), Worker("one", "192.0.2.1")...)
}

func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		out[p] = string(b)
		if info, ierr := d.Info(); ierr == nil && strings.HasSuffix(p, ".key") && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o: keys are for root only", p, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEnsure(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	r, err := Ensure(dir, table(), now)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Made) != len(table())+3 { // three CAs
		t.Errorf("made %v", r.Made)
	}
	first := snapshot(t, dir)

	t.Run("again changes nothing", func(t *testing.T) {
		r, err := Ensure(dir, table(), now.Add(100*24*time.Hour))
		if err != nil || len(r.Made)+len(r.Renewed) != 0 {
			t.Errorf("second call: %+v, %v", r, err)
		}
		for p, b := range snapshot(t, dir) {
			if first[p] != b {
				t.Errorf("%s changed", p)
			}
		}
	})
	t.Run("each chain verifies for what it names", func(t *testing.T) {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(first[filepath.Join(dir, "ca.crt")]))
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "apiserver.crt"), filepath.Join(dir, "apiserver.key"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"kubernetes.default.svc", "192.0.2.1", "10.96.0.1", "localhost"} {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name}); err != nil {
				t.Errorf("the API's certificate for %s: %v", name, err)
			}
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
			t.Error("the API's certificate passes as a client's")
		}
		k, err := readCert(filepath.Join(dir, "kubelet.crt"))
		if err != nil || k.Subject.CommonName != "system:node:one" || !slices.Equal(k.Subject.Organization, []string{"system:nodes"}) {
			t.Errorf("the kubelet's certificate names %v, %v", k.Subject, err)
		}
	})
	t.Run("a new address reissues what names it, and nothing else", func(t *testing.T) {
		c := Cluster{Node: "one", Address: "192.0.2.99", FirstService: netip.MustParseAddr("10.96.0.1"), Domain: "cluster.local"}
		r, err := Ensure(dir, ControlPlane(c), now)
		want := []string{"apiserver", "etcd/server", "etcd/peer", "scheduler-server", "controller-manager-server"}
		if err != nil || !slices.Equal(r.Renewed, want) || len(r.Made) != 0 {
			t.Errorf("renewed %v, made %v, %v; want %v", r.Renewed, r.Made, err, want)
		}
	})
	t.Run("near their end all leaves are renewed, CAs never", func(t *testing.T) {
		r, err := Ensure(dir, table(), now.Add(300*24*time.Hour))
		if err != nil || len(r.Renewed) != len(table()) {
			t.Errorf("renewed %d of %d: %v", len(r.Renewed), len(table()), err)
		}
		if snapshot(t, dir)[filepath.Join(dir, "ca.crt")] != first[filepath.Join(dir, "ca.crt")] {
			t.Error("the CA was replaced")
		}
	})
	t.Run("a lost or foreign key is mended", func(t *testing.T) {
		if err := os.Remove(filepath.Join(dir, "admin.key")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "scheduler.crt"), []byte("garbage"), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := Ensure(dir, table(), now.Add(300*24*time.Hour))
		if err != nil || !slices.Contains(r.Renewed, "admin") || !slices.Contains(r.Renewed, "scheduler") {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("an ended CA is an error that says so", func(t *testing.T) {
		_, err := Ensure(dir, table(), now.Add(11*365*24*time.Hour))
		if err == nil || !strings.Contains(err.Error(), "keelson reset") {
			t.Errorf("%v", err)
		}
	})
}

// A machine that joined has the CA's certificate but not its key.
func TestJoinedMachine(t *testing.T) {
	master, joined, now := t.TempDir(), t.TempDir(), time.Now()
	if _, err := Ensure(master, table(), now); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(master, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteRaw(filepath.Join(joined, "ca.crt"), ca, false); err != nil {
		t.Fatal(err)
	}
	for _, w := range Worker("two", "192.0.2.2") {
		cert, key, err := Issue(master, w, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteRaw(filepath.Join(joined, w.Name+".crt"), cert, false); err != nil {
			t.Fatal(err)
		}
		if err := WriteRaw(filepath.Join(joined, w.Name+".key"), key, true); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := Ensure(joined, Worker("two", "192.0.2.2"), now); err != nil || len(r.Made)+len(r.Renewed) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Ensure(joined, Worker("two", "192.0.2.3"), now); err == nil || !strings.Contains(err.Error(), "node-bundle") {
		t.Errorf("another address without the CA's key: %v", err)
	}
}

func TestSigningKey(t *testing.T) {
	dir := t.TempDir()
	if made, err := EnsureSigningKey(dir); err != nil || !made {
		t.Fatal(made, err)
	}
	before := snapshot(t, dir)
	if made, err := EnsureSigningKey(dir); err != nil || made {
		t.Fatal(made, err)
	}
	for p, b := range snapshot(t, dir) {
		if before[p] != b {
			t.Errorf("%s changed: every token would be void", p)
		}
	}
}
