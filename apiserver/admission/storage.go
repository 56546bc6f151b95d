package admission

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

const (
	defaultClassAnnotation     = "storageclass.kubernetes.io/is-default-class"
	betaDefaultClassAnnotation = "storageclass.beta.kubernetes.io/is-default-class"
	betaClassAnnotation        = "volume.beta.kubernetes.io/storage-class"
	pvcProtection              = "kubernetes.io/pvc-protection"
	pvProtection               = "kubernetes.io/pv-protection"
	vacProtection              = "kubernetes.io/vac-protection"
)

// defaultStorageClass names the default class in claims that name none: of several, the newest.
func defaultStorageClass(cfg Config) Plugin {
	return Plugin{Name: "DefaultStorageClass", Mutate: func(_ context.Context, a *Attributes) error {
		pvc, ok := a.Object.(*corev1.PersistentVolumeClaim)
		if !ok || !a.is(grClaims) || a.Operation != Create || pvc.Spec.StorageClassName != nil {
			return nil
		}
		if _, old := pvc.Annotations[betaClassAnnotation]; old {
			return nil
		}
		var best *storagev1.StorageClass
		err := cfg.Read.Each(grStorageClasses, "", func(o resources.Object) bool {
			sc, ok := o.(*storagev1.StorageClass)
			if ok && (sc.Annotations[defaultClassAnnotation] == "true" || sc.Annotations[betaDefaultClassAnnotation] == "true") {
				if best == nil || sc.CreationTimestamp.After(best.CreationTimestamp.Time) ||
					sc.CreationTimestamp.Equal(&best.CreationTimestamp) && sc.Name < best.Name {
					best = sc
				}
			}
			return true
		})
		if err == nil && best != nil {
			name := best.Name
			pvc.Spec.StorageClassName = &name
		}
		return err
	}}
}

// storageObjectInUseProtection marks claims, volumes and their classes so that they outlive their users.
func storageObjectInUseProtection() Plugin {
	return Plugin{Name: "StorageObjectInUseProtection", Mutate: func(_ context.Context, a *Attributes) error {
		if a.Operation != Create {
			return nil
		}
		switch o := a.Object.(type) {
		case *corev1.PersistentVolumeClaim:
			if a.is(grClaims) && !slices.Contains(o.Finalizers, pvcProtection) {
				o.Finalizers = append(o.Finalizers, pvcProtection)
			}
		case *corev1.PersistentVolume:
			if a.is(grVolumes) && !slices.Contains(o.Finalizers, pvProtection) {
				o.Finalizers = append(o.Finalizers, pvProtection)
			}
		case *storagev1.VolumeAttributesClass:
			if a.is(grAttributesClasses) && !slices.Contains(o.Finalizers, vacProtection) {
				o.Finalizers = append(o.Finalizers, vacProtection)
			}
		}
		return nil
	}}
}

// persistentVolumeClaimResize refuses to grow claims whose class does not allow it.
func persistentVolumeClaimResize(cfg Config) Plugin {
	return Plugin{Name: "PersistentVolumeClaimResize", Validate: func(_ context.Context, a *Attributes) (func(), error) {
		pvc, ok := a.Object.(*corev1.PersistentVolumeClaim)
		old, okOld := a.Old.(*corev1.PersistentVolumeClaim)
		if !ok || !okOld || !a.is(grClaims) || a.Operation != Update {
			return nil, nil
		}
		was, now := old.Spec.Resources.Requests[corev1.ResourceStorage], pvc.Spec.Resources.Requests[corev1.ResourceStorage]
		if now.Cmp(was) <= 0 {
			return nil, nil
		}
		if old.Status.Phase != corev1.ClaimBound {
			return nil, forbid(a, fmt.Errorf("Only bound persistent volume claims can be expanded"))
		}
		if c := pvc.Spec.StorageClassName; c != nil && *c != "" {
			sc, err := resources.Lookup[storagev1.StorageClass](cfg.Read, grStorageClasses, "", *c)
			if err != nil {
				return nil, err
			}
			if sc != nil && sc.AllowVolumeExpansion != nil && *sc.AllowVolumeExpansion {
				return nil, nil
			}
		}
		return nil, forbid(a, fmt.Errorf("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
	}}
}
