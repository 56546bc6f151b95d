package volumes

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Claim is how a pod came to a PersistentVolume.
type Claim struct {
	Volume string // of the pod
	Name   string // of the PersistentVolumeClaim, in the pod's namespace

	elsewhere string // directory of a volume that is used where it is; empty: it is in the pod's directory
	plugin    string // "kubernetes.io/local-volume"
}

// Usage is the space that one volume takes.
type Usage struct {
	Name   string // of the pod's volume
	Claim  string // name of the PersistentVolumeClaim that it comes from; empty: none
	Plugin string // "empty-dir", "configmap", ...
	Memory bool   // the bytes are memory

	UsedBytes, AvailableBytes, CapacityBytes uint64
	InodesUsed, InodesFree, Inodes           uint64
}

// Usage measures the volumes of a pod that this room has made. A file system of its own
// is asked; a directory is walked, which costs as much as du.
func (m *Manager) Usage(uid types.UID) []Usage {
	root := filepath.Join(m.podDir(uid), "volumes")
	plugins, _ := os.ReadDir(root) // a pod may have none there
	m.mu.Lock()
	var claims map[string]Claim
	if s := m.pods[uid]; s != nil {
		claims = s.claims
	}
	m.mu.Unlock()
	var all []Usage
	for _, plugin := range plugins {
		entries, err := os.ReadDir(filepath.Join(root, plugin.Name()))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "..") {
				continue
			}
			u := Usage{Name: e.Name(), Plugin: strings.TrimPrefix(plugin.Name(), "kubernetes.io~")}
			if c, ok := claims[e.Name()]; ok {
				if c.elsewhere != "" {
					continue
				}
				u.Name, u.Claim = c.Volume, c.Name
			}
			if m.measure(filepath.Join(root, plugin.Name(), e.Name()), &u) {
				all = append(all, u)
			}
		}
	}
	for _, c := range claims {
		if c.elsewhere == "" {
			continue
		}
		u := Usage{Name: c.Volume, Claim: c.Name, Plugin: strings.TrimPrefix(c.plugin, "kubernetes.io/")}
		if _, ok := fileSystem(c.elsewhere, &u); ok {
			all = append(all, u)
		}
	}
	return all
}

// fileSystem asks the file system that holds dir; used is what all of it has in use.
func fileSystem(dir string, u *Usage) (s unix.Statfs_t, ok bool) {
	if err := unix.Statfs(dir, &s); err != nil {
		return s, false
	}
	block := uint64(s.Bsize)
	u.CapacityBytes, u.AvailableBytes, u.UsedBytes = s.Blocks*block, s.Bavail*block, (s.Blocks-s.Bfree)*block
	u.Inodes, u.InodesFree, u.InodesUsed = s.Files, s.Ffree, s.Files-s.Ffree
	return s, true
}

func (m *Manager) measure(dir string, u *Usage) bool {
	s, ok := fileSystem(dir, u)
	if !ok {
		return false
	}
	u.Memory = s.Type == unix.TMPFS_MAGIC
	if mounted, err := isMounted(dir); err == nil && mounted {
		return true
	}
	began := time.Now()
	u.UsedBytes, u.InodesUsed = 0, 0
	linked := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // files come and go while we look
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || linked[stat.Ino] {
			return nil
		}
		if stat.Nlink > 1 && !e.IsDir() {
			linked[stat.Ino] = true
		}
		u.UsedBytes += uint64(stat.Blocks) * 512
		u.InodesUsed++
		return nil
	})
	m.metrics.VolumeMeasured("du", time.Since(began)) // upstream's name for it
	return true
}
