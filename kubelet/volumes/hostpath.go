package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

var hostPath = Type{
	Plugin: "kubernetes.io~host-path",
	Match:  func(q *request) bool { return q.hostPath() != nil },
	Update: func(_ context.Context, q *request) (Mounted, error) {
		s := q.hostPath()
		for _, element := range strings.Split(s.Path, "/") {
			if element == ".." {
				return Mounted{}, fmt.Errorf("invalid HostPath `%s`: must not contain '..'", s.Path)
			}
		}
		kind := corev1.HostPathUnset
		if s.Type != nil {
			kind = *s.Type
		}
		return Mounted{HostPath: s.Path, Block: q.block()}, checkHostPath(s.Path, kind)
	},
}

func (q *request) hostPath() *corev1.HostPathVolumeSource {
	if q.pv != nil {
		return q.pv.Spec.HostPath
	}
	return q.volume.HostPath
}

// checkHostPath makes what may be made and refuses what is of another type. Source:
// Kubernetes documentation, "Volumes", hostPath volume types.
func checkHostPath(path string, kind corev1.HostPathType) error {
	switch kind {
	case corev1.HostPathUnset:
		return nil
	case corev1.HostPathDirectoryOrCreate:
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
		}
	case corev1.HostPathFileOrCreate:
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			f, err := os.OpenFile(filepath.Clean(path), os.O_CREATE|os.O_RDONLY, 0o644)
			if err != nil {
				return err
			}
			f.Close()
		}
	}
	var mode fs.FileMode
	info, err := os.Stat(path)
	if err == nil {
		mode = info.Mode()
	}
	refuse := func(what string) error { return fmt.Errorf("hostPath type check failed: %s is not %s", path, what) }
	switch kind {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		if err != nil || !mode.IsDir() {
			return refuse("a directory")
		}
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		if err != nil || !mode.IsRegular() {
			return refuse("a file")
		}
	case corev1.HostPathSocket:
		if mode&fs.ModeSocket == 0 {
			return refuse("a socket file")
		}
	case corev1.HostPathCharDev:
		if mode&fs.ModeCharDevice == 0 {
			return refuse("a character device")
		}
	case corev1.HostPathBlockDev:
		if mode&fs.ModeDevice == 0 || mode&fs.ModeCharDevice != 0 {
			return refuse("a block device")
		}
	default:
		return fmt.Errorf("%s is an invalid volume type", kind)
	}
	return nil
}
