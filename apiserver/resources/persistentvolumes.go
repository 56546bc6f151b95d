package resources

import (
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

type volume = corev1.PersistentVolume

var persistentVolumes = Resource[volume]{
	Group: "", Version: "v1", Kind: "PersistentVolume", Plural: "persistentvolumes", Short: []string{"pv"}, Scope: Cluster, NoGeneration: true,
	List: listOf[corev1.PersistentVolumeList],
	Default: func(v *volume) {
		def(&v.Status.Phase, corev1.VolumePending)
		def(&v.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
		defPtr(&v.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
		switch s := &v.Spec; {
		case s.HostPath != nil:
			defPtr(&s.HostPath.Type, corev1.HostPathUnset)
		case s.ISCSI != nil:
			def(&s.ISCSI.ISCSIInterface, "default")
		case s.RBD != nil:
			def(&s.RBD.RBDPool, "rbd")
			def(&s.RBD.RadosUser, "admin")
			def(&s.RBD.Keyring, "/etc/ceph/keyring")
		case s.ScaleIO != nil:
			def(&s.ScaleIO.StorageMode, "ThinProvisioned")
			def(&s.ScaleIO.FSType, "xfs")
		}
	},
	Main: Part[volume]{
		Prepare: func(rq *Request, obj, old *volume) {
			if old != nil {
				obj.Status = old.Status
				return
			}
			now := metaTime(rq.Now)
			obj.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending, LastPhaseTransitionTime: &now}
		},
		Validate: withoutRequest(validatePersistentVolume),
		Reset:    []string{"status"},
	},
	Status: &Part[volume]{
		Prepare: func(rq *Request, obj, old *volume) {
			obj.Spec = old.Spec
			if obj.Status.Phase != old.Status.Phase && equality.Semantic.DeepEqual(obj.Status.LastPhaseTransitionTime, old.Status.LastPhaseTransitionTime) {
				now := metaTime(rq.Now)
				obj.Status.LastPhaseTransitionTime = &now
			}
		},
		Reset: []string{"spec"},
	},
	Fields:     func(v *volume) fields.Set { return fields.Set{"name": v.Name} },
	FieldNames: []string{"name"},
	Columns: []Column[volume]{
		text("Capacity", func(v *volume) string { return quantityText(v.Spec.Capacity[corev1.ResourceStorage]) }),
		text("Access Modes", func(v *volume) string { return accessModesText(v.Spec.AccessModes) }),
		text("Reclaim Policy", func(v *volume) string { return string(v.Spec.PersistentVolumeReclaimPolicy) }),
		text("Status", func(v *volume) string {
			if v.DeletionTimestamp != nil {
				return "Terminating"
			}
			return string(v.Status.Phase)
		}),
		text("Claim", func(v *volume) string {
			if v.Spec.ClaimRef == nil {
				return ""
			}
			return v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name
		}),
		text("StorageClass", func(v *volume) string { return classOf(v.Annotations, &v.Spec.StorageClassName) }),
		text("VolumeAttributesClass", func(v *volume) string { return valueOr(v.Spec.VolumeAttributesClassName, "<unset>") }),
		text("Reason", func(v *volume) string { return v.Status.Reason }),
		ageColumn[volume](),
		wide(text("VolumeMode", func(v *volume) string { return string(valueOr(v.Spec.VolumeMode, "<unset>")) })),
	},
}

func validatePersistentVolume(v, old *volume) field.ErrorList {
	var f check.Faults
	s, p := &v.Spec, field.NewPath("spec")
	f.Add(podrules.ValidateAccessModes(s.AccessModes, "", p.Child("accessModes")))
	if len(s.Capacity) == 0 {
		f.Required(p.Child("capacity"), "")
	}
	if _, ok := s.Capacity[corev1.ResourceStorage]; !ok || len(s.Capacity) > 1 {
		f.Add(field.ErrorList{field.NotSupported(p.Child("capacity"), s.Capacity, []corev1.ResourceName{corev1.ResourceStorage})})
	}
	for name, q := range s.Capacity {
		if q.Sign() <= 0 {
			f.Invalid(p.Child("capacity").Key(string(name)), q.String(), check.NotPositive)
		}
	}
	check.AmongOrEmpty(&f, p.Child("persistentVolumeReclaimPolicy"), s.PersistentVolumeReclaimPolicy,
		corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)
	if a := s.NodeAffinity; a != nil {
		if a.Required == nil {
			f.Required(p.Child("nodeAffinity", "required"), "must specify required node constraints")
		} else {
			f.Add(podrules.ValidateNodeSelector(a.Required, p.Child("nodeAffinity", "required")))
		}
	}
	validateVolumeSource(&f, s, p)
	if s.HostPath != nil && s.HostPath.Path == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		f.Forbidden(p.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'")
	}
	if s.StorageClassName != "" {
		f.Subdomain(p.Child("storageClassName"), s.StorageClassName)
	}
	check.AmongPtr(&f, p.Child("volumeMode"), s.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	if c := s.VolumeAttributesClassName; c != nil {
		if *c == "" {
			f.Required(p.Child("volumeAttributesClassName"), "an empty string is disallowed")
		} else {
			f.Subdomain(p.Child("volumeAttributesClassName"), *c)
		}
		if s.CSI == nil {
			f.Required(p.Child("csi"), "has to be specified when using volumeAttributesClassName")
		}
	}
	if old == nil {
		return f.List()
	}
	if !equality.Semantic.DeepEqual(s.PersistentVolumeSource, old.Spec.PersistentVolumeSource) && !onlySecretsAdded(s, &old.Spec) {
		f.Forbidden(p.Child("persistentvolumesource"), fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v",
			diff.Diff(old.Spec.PersistentVolumeSource, s.PersistentVolumeSource)))
	}
	f.Same(p.Child("volumeMode"), s.VolumeMode, old.Spec.VolumeMode)
	if old.Spec.NodeAffinity != nil && !equality.Semantic.DeepEqual(s.NodeAffinity, old.Spec.NodeAffinity) {
		f.Invalid(p.Child("nodeAffinity"), s.NodeAffinity, check.Immutable+", except for updating from beta label to GA")
	}
	if old.Spec.VolumeAttributesClassName != nil && s.VolumeAttributesClassName == nil {
		f.Forbidden(p.Child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden")
	}
	return f.List()
}

// onlySecretsAdded: a CSI volume may be told its expansion secret later.
func onlySecretsAdded(s, old *corev1.PersistentVolumeSpec) bool {
	if s.CSI == nil || old.CSI == nil {
		return false
	}
	was := old.PersistentVolumeSource.DeepCopy()
	was.CSI.ControllerExpandSecretRef = s.CSI.ControllerExpandSecretRef
	return equality.Semantic.DeepEqual(s.PersistentVolumeSource, *was)
}

func validateVolumeSource(f *check.Faults, s *corev1.PersistentVolumeSpec, p *field.Path) {
	first := ""
	sources := reflect.ValueOf(&s.PersistentVolumeSource).Elem()
	for i := range sources.NumField() {
		if sources.Field(i).IsNil() {
			continue
		}
		name, _, _ := strings.Cut(sources.Type().Field(i).Tag.Get("json"), ",")
		if first != "" {
			f.Forbidden(p.Child(name), "may not specify more than 1 volume type")
			continue
		}
		first = name
	}
	if first == "" {
		f.Required(p, "must specify a volume type")
		return
	}
	at := p.Child(first)
	backsteps := func(path string) {
		if f.Need(at.Child("path"), path) && strings.Contains("/"+path+"/", "/../") {
			f.Invalid(at.Child("path"), path, "must not contain '..'")
		}
	}
	switch {
	case s.HostPath != nil:
		backsteps(s.HostPath.Path)
		check.AmongPtr(f, at.Child("type"), s.HostPath.Type, corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
			corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)
	case s.Local != nil:
		backsteps(s.Local.Path)
		if s.NodeAffinity == nil {
			f.Required(p.Child("nodeAffinity"), "Local volume requires node affinity")
		}
	case s.NFS != nil:
		f.Add(podrules.ValidateNFS(s.NFS, at))
	case s.CSI != nil:
		f.Add(podrules.ValidateCSIDriverName(s.CSI.Driver, at.Child("driver")))
		f.Need(at.Child("volumeHandle"), s.CSI.VolumeHandle)
		for name, ref := range map[string]*corev1.SecretReference{
			"controllerPublishSecretRef": s.CSI.ControllerPublishSecretRef, "nodePublishSecretRef": s.CSI.NodePublishSecretRef,
			"nodeStageSecretRef": s.CSI.NodeStageSecretRef, "controllerExpandSecretRef": s.CSI.ControllerExpandSecretRef,
			"nodeExpandSecretRef": s.CSI.NodeExpandSecretRef,
		} {
			if ref != nil {
				f.Need(at.Child(name, "name"), ref.Name)
				f.Need(at.Child(name, "namespace"), ref.Namespace)
			}
		}
	case s.ISCSI != nil:
		f.Need(at.Child("targetPortal"), s.ISCSI.TargetPortal)
		f.Need(at.Child("iqn"), s.ISCSI.IQN)
	case s.FC != nil:
		f.Add(podrules.ValidateLegacyVolume(&corev1.VolumeSource{FC: s.FC}, at))
	case s.GCEPersistentDisk != nil:
		f.Add(podrules.ValidateLegacyVolume(&corev1.VolumeSource{GCEPersistentDisk: s.GCEPersistentDisk}, at))
	case s.AWSElasticBlockStore != nil:
		f.Add(podrules.ValidateLegacyVolume(&corev1.VolumeSource{AWSElasticBlockStore: s.AWSElasticBlockStore}, at))
	case s.AzureDisk != nil:
		f.Add(podrules.ValidateLegacyVolume(&corev1.VolumeSource{AzureDisk: s.AzureDisk}, at))
	case s.VsphereVolume != nil:
		f.Add(podrules.ValidateLegacyVolume(&corev1.VolumeSource{VsphereVolume: s.VsphereVolume}, at))
	}
}
