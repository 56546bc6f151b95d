package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
)

// payload is the files of a volume, by relative path.
type payload map[string]file

type file struct {
	data []byte
	mode int32
	user *int64 // owner; nil is root
}

// Names inside a volume of files. Users and programs rely on them: a change is seen by
// watching dataLink. Source: Kubernetes documentation, "Configure a Pod to Use a
// ConfigMap", mounted ConfigMaps are updated automatically.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
)

// write brings a volume of files to what its type's Content says.
//
//	<dir>/..2026_11_23_18_04_05.123456789/a/b   the files of one generation
//	<dir>/..data -> ..2026_11_23_18_04_05.123456789
//	<dir>/a      -> ..data/a
//
// A generation is written completely, given its owners and modes, and then becomes
// visible by renaming one symbolic link. A crash at any point leaves the old or the new
// generation visible; the next write removes what is left over.
func (q *request) write(ctx context.Context, t *Type) (next time.Time, err error) {
	p, next, err := t.Content(ctx, q)
	if err != nil {
		return time.Time{}, err
	}
	for path := range p {
		if err := checkPath(path); err != nil {
			return time.Time{}, err
		}
	}
	group := q.fsGroup()
	if t.InMemory {
		err = makeTmpfs(q.dir, group, 0)
	} else {
		err = makeDir(q.dir, 0o777, group)
	}
	if err == nil {
		err = q.makeMountPoints()
	}
	if err == nil {
		err = writeGeneration(q.dir, p, group, time.Now())
	}
	return next, err
}

func checkPath(path string) error {
	switch {
	case path == "" || filepath.IsAbs(path) || filepath.Clean(path) != path:
		return fmt.Errorf("invalid path: must be relative path: %s", path)
	case strings.HasPrefix(path, ".."):
		return fmt.Errorf("invalid path: must not start with '..': %s", path)
	}
	return nil
}

// writeGeneration is write without its sources.
func writeGeneration(dir string, p payload, group *int64, now time.Time) error {
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if old != "" && same(filepath.Join(dir, old), p, group) && linked(dir, p) {
		return nil
	}
	fresh, err := os.MkdirTemp(dir, now.UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	if err := fill(fresh, p, group); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	link := filepath.Join(dir, newDataLink)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(fresh), link); err != nil {
		return err
	}
	if err := os.Rename(link, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	return tidy(dir, filepath.Base(fresh), p)
}

// top is the first elements of all paths: what users see in the volume.
func top(p payload) sets.Set[string] {
	names := sets.New[string]()
	for path := range p {
		first, _, _ := strings.Cut(path, "/")
		names.Insert(first)
	}
	return names
}

// linked says that every visible name leads into the current generation.
func linked(dir string, p payload) bool {
	for name := range top(p) {
		if target, err := os.Readlink(filepath.Join(dir, name)); err != nil || target != dataLink+"/"+name {
			return false
		}
	}
	return true
}

// tidy makes the visible names, and removes those of earlier generations and the
// generations themselves.
func tidy(dir, current string, p payload) error {
	names := top(p)
	for _, name := range sets.List(names) {
		path := filepath.Join(dir, name)
		if target, err := os.Readlink(path); err == nil && target == dataLink+"/"+name {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.Symlink(dataLink+"/"+name, path); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		stale := strings.HasPrefix(name, "..") && name != dataLink && name != current
		if e.Type()&fs.ModeSymlink != 0 && !names.Has(name) {
			target, _ := os.Readlink(filepath.Join(dir, name))
			stale = stale || target == dataLink+"/"+name
		}
		if stale {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// fileMode is what a file ends up with: sharing it with a group adds what the group
// needs to read it.
func fileMode(f file, group *int64) fs.FileMode {
	mode := fs.FileMode(f.mode) & fs.ModePerm
	if group != nil {
		mode |= 0o440
	}
	return mode
}

// fill writes one generation.
func fill(dir string, p payload, group *int64) error {
	dirMode := fs.FileMode(0o755)
	own := func(path string, mode fs.FileMode, user *int64) error {
		uid, gid := -1, -1
		if user != nil {
			uid = int(*user)
		}
		if group != nil {
			gid = int(*group)
		}
		if uid >= 0 || gid >= 0 {
			if err := os.Lchown(path, uid, gid); err != nil {
				return err
			}
		}
		return os.Chmod(path, mode) // after the owner: changing that drops set-id bits
	}
	if group != nil {
		dirMode |= fs.ModeSetgid | 0o550
	}
	if err := own(dir, dirMode, nil); err != nil {
		return err
	}
	paths := make([]string, 0, len(p))
	for path := range p {
		paths = append(paths, path)
	}
	sort.Strings(paths)
	for _, path := range paths {
		parent := dir
		elements := strings.Split(path, "/")
		for _, e := range elements[:len(elements)-1] {
			parent = filepath.Join(parent, e)
			if err := os.Mkdir(parent, 0o755); err == nil {
				err = own(parent, dirMode, nil)
				if err != nil {
					return err
				}
			} else if !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		full := filepath.Join(dir, path)
		if err := os.WriteFile(full, p[path].data, 0o600); err != nil {
			return err
		}
		if err := own(full, fileMode(p[path], group), p[path].user); err != nil {
			return err
		}
	}
	return nil
}

// same says that the generation in dir holds exactly these files.
func same(dir string, p payload, group *int64) bool {
	found := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, ok := p[relative]
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !ok || info.Size() != int64(len(f.data)) || info.Mode().Perm() != fileMode(f, group) {
			return errDiffers
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, f.data) {
			return errDiffers
		}
		found++
		return nil
	})
	return err == nil && found == len(p)
}

var errDiffers = errors.New("differs")

// makeMountPoints makes the directories at which containers mount other volumes below
// this one: a container sees this one read-only, so that the runtime cannot make them.
func (q *request) makeMountPoints() error {
	var containers []corev1.Container
	containers = append(append(containers, q.pod.Spec.InitContainers...), q.pod.Spec.Containers...)
	for _, c := range containers {
		for _, mine := range c.VolumeMounts {
			if mine.Name != q.volume.Name || mine.SubPath != "" || mine.SubPathExpr != "" {
				continue
			}
			for _, other := range c.VolumeMounts {
				relative, err := filepath.Rel(mine.MountPath, other.MountPath)
				if err != nil || relative == "." || strings.HasPrefix(relative, "..") {
					continue
				}
				if _, err := os.Lstat(filepath.Join(q.dir, relative)); err == nil {
					continue
				}
				if err := os.MkdirAll(filepath.Join(q.dir, relative), 0o755); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
