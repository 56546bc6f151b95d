package images

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestBuild(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Name: "keelson.local/program:1", Entrypoint: []string{"/a/program"}, User: "1:1", Dirs: []string{"/tmp"},
		Files: []File{{Path: "/a/program", From: program}, {Path: "/etc/name", Text: "x"}, {Path: "/bin/sh", Link: "/a/program"}}}
	file := filepath.Join(dir, "x.tar")
	if err := Build(file, spec); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(spec.Name)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(file, &tag)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil || cf.Config.Entrypoint[0] != "/a/program" || cf.Config.User != "1:1" || cf.OS != "linux" {
		t.Errorf("configuration: %+v, %v", cf, err)
	}
	modes := map[string]int64{}
	r := mutate.Extract(img)
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		modes[h.Name] = h.Mode
	}
	for path, mode := range map[string]int64{"a/program": 0o755, "etc/name": 0o644, "bin/sh": 0o777, "tmp": 0o1777} {
		if modes[path] != mode && modes[path+"/"] != mode {
			t.Errorf("%s has mode %o, want %o (all: %v)", path, modes[path], mode, modes)
		}
	}
	again, err := Image(spec)
	if err != nil {
		t.Fatal(err)
	}
	d1, err1 := img.Digest()
	d2, err2 := again.Digest()
	if err1 != nil || err2 != nil || d1 != d2 {
		t.Errorf("the same files give %s and %s (%v, %v)", d1, d2, err1, err2)
	}
}
