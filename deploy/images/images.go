// Package images makes container images without a registry, and loads archives of
// them into the machine's runtime.
//
// Main calls: Build (a few files → an archive that `ctr images import` and
// `docker load` read) and Load. An image is reproducible: the same files give the same
// digest, as no times are stored.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"sort"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is one entry of an image.
type File struct {
	Path string // absolute, in the image
	From string // a file of this machine; or
	Text string // the contents; or
	Link string // a symbolic link's target
	Mode int64  // 0 means 0755 with From and 0644 with Text
}

// Spec describes an image of one layer.
type Spec struct {
	Name       string // reference with tag
	Files      []File
	Dirs       []string // empty directories; /tmp gets mode 1777
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkDir    string
}

// Image builds the image in memory.
func Image(s Spec) (v1.Image, error) {
	layerBytes, err := layer(s)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Name, err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layerBytes)), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	cf.Config = v1.Config{Entrypoint: s.Entrypoint, Cmd: s.Cmd, Env: s.Env, User: s.User, WorkingDir: s.WorkDir}
	return mutate.ConfigFile(img, cf)
}

// Build writes an archive with the images to file.
func Build(file string, specs ...Spec) error {
	all := map[name.Tag]v1.Image{}
	for _, s := range specs {
		tag, err := name.NewTag(s.Name)
		if err != nil {
			return fmt.Errorf("image %s: %w", s.Name, err)
		}
		img, err := Image(s)
		if err != nil {
			return err
		}
		all[tag] = img
	}
	tmp := file + ".new"
	if err := tarball.MultiWriteToFile(tmp, all); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return os.Rename(tmp, file)
}

func layer(s Spec) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	dirs := map[string]int64{}
	for _, f := range s.Files {
		for d := path.Dir(f.Path); d != "/" && d != "."; d = path.Dir(d) {
			dirs[d] = 0o755
		}
	}
	for _, d := range s.Dirs {
		for p := d; p != "/" && p != "."; p = path.Dir(p) {
			dirs[p] = 0o755
		}
		if path.Base(d) == "tmp" {
			dirs[d] = 0o1777
		}
	}
	names := make([]string, 0, len(dirs))
	for d := range dirs {
		names = append(names, d)
	}
	sort.Strings(names)
	for _, d := range names {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(d, "/") + "/", Mode: dirs[d]}); err != nil {
			return nil, err
		}
	}
	files := append([]File(nil), s.Files...)
	sort.SliceStable(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	for _, f := range files {
		h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: f.Mode, Typeflag: tar.TypeReg}
		var body []byte
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		case f.From != "":
			var err error
			if body, err = os.ReadFile(f.From); err != nil {
				return nil, err
			}
			if h.Mode == 0 {
				h.Mode = 0o755
			}
		default:
			body = []byte(f.Text)
			if h.Mode == 0 {
				h.Mode = 0o644
			}
		}
		h.Size = int64(len(body))
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Load imports an archive into the runtime behind socket and returns what it names.
// Archives as `docker save` writes them and OCI ones are understood.
func Load(ctx context.Context, socket, file string) (loaded string, err error) {
	if _, err := os.Stat(file); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "ctr", "--address", socket, "--namespace", "k8s.io",
		"images", "import", "--snapshotter", "overlayfs", file)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("load %s: %w: %s", file, err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}
