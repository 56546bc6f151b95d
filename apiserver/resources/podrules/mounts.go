package podrules

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

func (r *specRules) validateMounts(c *corev1.Container, p *field.Path) {
	devices, devicePaths := map[string]bool{}, map[string]bool{}
	for _, d := range c.VolumeDevices {
		devices[d.Name], devicePaths[d.DevicePath] = true, true
	}
	mounted, mountPaths := map[string]bool{}, check.Seen[string]{}
	for i, m := range c.VolumeMounts {
		at := p.Child("volumeMounts").Index(i)
		mounted[m.Name] = true
		r.Need(at.Child("name"), m.Name)
		if _, ok := r.volumes[m.Name]; !ok {
			r.NotFound(at.Child("name"), m.Name)
		}
		r.Need(at.Child("mountPath"), m.MountPath)
		if mountPaths.Again(m.MountPath) {
			r.Invalid(at.Child("mountPath"), m.MountPath, "must be unique")
		}
		if devices[m.Name] {
			r.Invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices")
		}
		if devicePaths[m.MountPath] {
			r.Invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices")
		}
		if m.SubPath != "" {
			r.inside(m.SubPath, p.Child("volumeMounts", "subPath"))
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				r.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
			}
			r.inside(m.SubPathExpr, p.Child("volumeMounts", "subPathExpr"))
		}
		if mp := m.MountPropagation; mp != nil {
			at := p.Child("volumeMounts")
			check.Among(&r.Faults, at.Child("mountPropagation"), *mp,
				corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)
			if *mp == corev1.MountPropagationBidirectional && !isPrivileged(c) {
				r.Forbidden(at.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers")
			}
		}
		if ro := m.RecursiveReadOnly; ro != nil {
			at := p.Child("volumeMounts", "recursiveReadOnly")
			if *ro == corev1.RecursiveReadOnlyEnabled || *ro == corev1.RecursiveReadOnlyIfPossible {
				if !m.ReadOnly {
					r.Forbidden(at, "may only be specified when readOnly is true")
				}
				if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
					r.Forbidden(at, "may only be specified when mountPropagation is None or not specified")
				}
			}
			check.Among(&r.Faults, at, *ro, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyIfPossible, corev1.RecursiveReadOnlyEnabled)
		}
	}
	names, paths := check.Seen[string]{}, check.Seen[string]{}
	for i, d := range c.VolumeDevices {
		at := p.Child("volumeDevices").Index(i)
		r.Need(at.Child("name"), d.Name)
		if d.Name != "" && names.Again(d.Name) {
			r.Invalid(at.Child("name"), d.Name, "must be unique")
		}
		if v, ok := r.volumes[d.Name]; !ok {
			r.NotFound(at.Child("name"), d.Name)
		} else if v.PersistentVolumeClaim == nil && v.Ephemeral == nil {
			r.Invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
		}
		r.Need(at.Child("devicePath"), d.DevicePath)
		if paths[d.DevicePath] {
			r.Invalid(at.Child("devicePath"), d.DevicePath, "must be unique")
		}
		if hasBackstep(d.DevicePath) {
			r.Invalid(at.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')")
		} else {
			paths[d.DevicePath] = true
		}
		if mounted[d.Name] {
			r.Invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts")
		}
		if mountPaths[d.DevicePath] {
			r.Invalid(at.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts")
		}
	}
}
