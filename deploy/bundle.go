package deploy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/keelson/keelson/deploy/config"
	"github.com/keelson/keelson/deploy/pki"
)

// bundleFiles are all that a bundle may hold, with their place below /etc/keelson;
// true means private.
var bundleFiles = map[string]bool{
	"cluster.yaml": false, "pki/ca.crt": false,
	"pki/kubelet.crt": false, "pki/kubelet.key": true,
	"pki/kubelet-server.crt": false, "pki/kubelet-server.key": true,
	"pki/kube-proxy.crt": false, "pki/kube-proxy.key": true,
}

// Bundle writes what a second machine needs to join as a worker: its settings and
// certificates, in a tar. Whoever holds it is that node; it is to be kept like a key.
func (m *Machine) Bundle(w io.Writer, node, address string) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	s, known, err := config.Load(m.Paths)
	if err != nil {
		return err
	}
	if !known || !s.ControlPlane {
		return errors.New("there is no control plane on this machine: run this where `keelson up` made the cluster")
	}
	if node == s.Node {
		return fmt.Errorf("%s is this machine; the other one needs a name of its own", node)
	}
	joined := s
	joined.Node, joined.Address, joined.ControlPlane, joined.Worker = node, address, false, true
	joined.Binaries, joined.ExtraNames, joined.CgroupRoot, joined.Extra = "", nil, "", nil
	check := joined
	check.Binaries = "/"
	if err := check.Validate(); err != nil {
		return err
	}
	settings, err := yaml.Marshal(joined)
	if err != nil {
		return err
	}
	files := map[string][]byte{"cluster.yaml": settings}
	if files["pki/ca.crt"], err = os.ReadFile(m.Paths.Cert("ca")); err != nil {
		return err
	}
	for _, want := range pki.Worker(node, address) {
		cert, key, err := pki.Issue(m.Paths.PKI, want, time.Now())
		if err != nil {
			return err
		}
		files["pki/"+want.Name+".crt"], files["pki/"+want.Name+".key"] = cert, key
	}
	t := tar.NewWriter(w)
	for name := range bundleFiles {
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(files[name])), ModTime: time.Now()}); err != nil {
			return err
		}
		if _, err := t.Write(files[name]); err != nil {
			return err
		}
	}
	return t.Close()
}

// Join lays a bundle's files down for the next Up. A machine with a cluster of its own
// is left alone; another bundle for the same node replaces the first.
func (m *Machine) Join(bundle io.Reader) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	old, known, err := config.Load(m.Paths)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	t := tar.NewReader(bundle)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("the bundle cannot be read (was it made by `keelson node-bundle`?): %w", err)
		}
		name := strings.TrimPrefix(filepath.Clean("/"+h.Name), "/")
		if _, ok := bundleFiles[name]; !ok {
			return fmt.Errorf("the bundle holds %q, which is not part of a bundle", h.Name)
		}
		if files[name], err = io.ReadAll(io.LimitReader(t, 1<<20)); err != nil {
			return err
		}
	}
	for name := range bundleFiles {
		if files[name] == nil {
			return fmt.Errorf("the bundle lacks %s: make it again with `keelson node-bundle`", name)
		}
	}
	s := config.Default()
	if err := yaml.UnmarshalStrict(files["cluster.yaml"], &s); err != nil {
		return fmt.Errorf("the bundle's settings: %w", err)
	}
	if known && (old.ControlPlane || old.Node != s.Node || old.Server != s.Server) {
		return fmt.Errorf("this machine is %s of %s already; `keelson reset` forgets that", old.Node, old.Server)
	}
	if known {
		s.Extra, s.Binaries, s.CgroupRoot = old.Extra, old.Binaries, old.CgroupRoot
	}
	for name, b := range files {
		if name == "cluster.yaml" {
			continue
		}
		if err := pki.WriteRaw(filepath.Join(m.Paths.Etc, name), b, bundleFiles[name]); err != nil {
			return err
		}
	}
	return s.Save(m.Paths)
}
