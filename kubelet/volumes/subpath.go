package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// SubPath returns a host path for one subPath of a volume: a bind mount of a file that
// was opened without leaving the volume, so that a container cannot lead it elsewhere by
// putting a symbolic link in its place, then or later. A missing directory is made with
// the volume's own mode. mount is the index in the container's volumeMounts.
//
// It needs openat2 (Linux 5.6).
func (m *Manager) SubPath(ctx context.Context, pod *corev1.Pod, container string, mount int, volume Mounted, subPath string) (string, error) {
	s := m.adopt(pod)
	s.work.Lock()
	defer s.work.Unlock()
	name := ""
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == container && mount < len(list[i].VolumeMounts) {
				name = list[i].VolumeMounts[mount].Name
			}
		}
	}
	for _, c := range pod.Spec.EphemeralContainers {
		if c.Name == container && mount < len(c.VolumeMounts) {
			name = c.VolumeMounts[mount].Name
		}
	}
	if name == "" {
		return "", fmt.Errorf("container %s has no volume mount %d", container, mount)
	}
	file, err := openInside(volume.HostPath, subPath)
	if err != nil {
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", name, container, err)
	}
	defer file.Close()
	target := filepath.Join(m.podDir(pod.UID), "volume-subpaths", name, container, strconv.Itoa(mount))
	if err := bindOpened(file, target); err != nil {
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", name, container, err)
	}
	return target, nil
}

// openInside opens path below root. Symbolic links are followed as long as they stay
// inside; one that leads out is an error, as is one that leads nowhere.
func openInside(root, path string) (*os.File, error) {
	path = filepath.Clean(path)
	if filepath.IsAbs(path) || path == ".." || strings.HasPrefix(path, "../") {
		return nil, fmt.Errorf("subpath %q not within volume path %q", path, root)
	}
	rootFile, err := os.OpenFile(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer rootFile.Close()
	info, err := rootFile.Stat()
	if err != nil {
		return nil, err
	}
	mode := info.Mode() & (fs.ModePerm | fs.ModeSetgid | fs.ModeSticky)
	open := func(path string) (*os.File, error) {
		fd, err := unix.Openat2(int(rootFile.Fd()), path, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch {
		case errors.Is(err, unix.EXDEV):
			return nil, fmt.Errorf("subpath %q not within volume path %q", path, root)
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: filepath.Join(root, path), Err: err}
		}
		return os.NewFile(uintptr(fd), filepath.Join(root, path)), nil
	}
	if f, err := open(path); !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	current, err := open(".")
	if err != nil {
		return nil, err
	}
	elements := strings.Split(path, "/")
	for i, element := range elements {
		prefix := strings.Join(elements[:i+1], "/")
		next, err := open(prefix)
		if errors.Is(err, fs.ErrNotExist) {
			err = unix.Mkdirat(int(current.Fd()), element, uint32(mode.Perm()))
			made := err == nil
			if err == nil || errors.Is(err, unix.EEXIST) {
				next, err = open(prefix)
			}
			if made && err == nil { // the process's umask may have taken bits away, mkdirat leaves out others
				err = os.Chmod(fmt.Sprintf("/proc/self/fd/%d", next.Fd()), mode)
			}
		}
		current.Close()
		if err != nil {
			return nil, err
		}
		current = next
	}
	return current, nil
}

// bindOpened mounts an opened file or directory at target. A mount of the same file is
// kept, one of another file is replaced: its volume has moved on.
func bindOpened(file *os.File, target string) error {
	var want, have unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &want); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	for {
		mounted, err := isMounted(target)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		if !mounted {
			break
		}
		if err := unix.Stat(target, &have); err == nil && have.Dev == want.Dev && have.Ino == want.Ino {
			return nil
		}
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if want.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.Mkdir(target, 0o750); err != nil {
			return err
		}
	} else {
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o640)
		if err != nil {
			return err
		}
		f.Close()
	}
	source := fmt.Sprintf("/proc/self/fd/%d", file.Fd())
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", file.Name(), target, err)
	}
	return nil
}
