package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	corev1 "k8s.io/api/core/v1"
	mount "k8s.io/mount-utils"
	"k8s.io/utils/exec"
)

// local is a PersistentVolume on a disk of this node: a directory is used as it is, a
// device is formatted at its first use and mounted, or handed out raw.
var local = Type{
	Plugin: "kubernetes.io~local-volume",
	Match:  func(q *request) bool { return q.pv != nil && q.pv.Spec.Local != nil },
	Update: func(_ context.Context, q *request) (Mounted, error) {
		s := q.pv.Spec.Local
		info, err := os.Stat(s.Path)
		if err != nil {
			return Mounted{}, fmt.Errorf("path %q does not exist: %w", s.Path, err)
		}
		device := info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
		switch {
		case q.block() && !device:
			return Mounted{}, fmt.Errorf("%s is not a block device", s.Path)
		case q.block():
			return Mounted{HostPath: s.Path, Block: true}, nil
		case info.IsDir():
			return Mounted{HostPath: s.Path}, shareWithGroup(s.Path, q)
		case !device:
			return Mounted{}, errors.New("only directory and block device are supported")
		}
		if err := mountDevice(q, s); err != nil {
			return Mounted{}, err
		}
		return Mounted{HostPath: q.dir}, shareWithGroup(q.dir, q)
	},
}

func mountDevice(q *request, s *corev1.LocalVolumeSource) error {
	if err := os.MkdirAll(q.dir, 0o750); err != nil {
		return err
	}
	if mounted, err := isMounted(q.dir); err != nil || mounted {
		return err
	}
	fsType := "ext4"
	if s.FSType != nil && *s.FSType != "" {
		fsType = *s.FSType
	}
	options := append([]string(nil), q.pv.Spec.MountOptions...)
	if q.readOnly {
		options = append(options, "ro")
	}
	if err := mount.NewSafeFormatAndMount(mount.New(""), exec.New()).FormatAndMount(s.Path, q.dir, fsType, options); err != nil {
		return fmt.Errorf("local: failed to mount device %s at %s (fstype: %s), error %w", s.Path, q.dir, fsType, err)
	}
	return nil
}

// shareWithGroup gives a persistent file system to the pod's fsGroup.
func shareWithGroup(dir string, q *request) error {
	group := q.fsGroup()
	if group == nil || q.readOnly {
		return nil
	}
	policy := q.pod.Spec.SecurityContext.FSGroupChangePolicy
	if policy != nil && *policy == corev1.FSGroupChangeOnRootMismatch && sharedWith(dir, *group) {
		return nil
	}
	return shareTree(dir, *group)
}
