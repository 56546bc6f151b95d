package resources

import (
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

type volume = corev1.PersistentVolume

var persistentVolumes = Resource[volume]{
	Group: "", Version: "v1", Kind: "PersistentVolume", LooseMeta: true, Plural: "persistentvolumes", WholeMeta: true, Short: []string{"pv"}, Scope: Cluster, NoGeneration: true,
	List: listOf[corev1.PersistentVolumeList],
	Default: func(v *volume) {
		def(&v.Status.Phase, corev1.VolumePending)
		def(&v.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
		defPtr(&v.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
		podrules.RoundUp(v.Spec.Capacity)
		switch s := &v.Spec; {
		case s.AzureDisk != nil:
			defPtr(&s.AzureDisk.CachingMode, corev1.AzureDataDiskCachingReadWrite)
			defPtr(&s.AzureDisk.Kind, corev1.AzureSharedBlobDisk)
			defPtr(&s.AzureDisk.FSType, "ext4")
			defPtr(&s.AzureDisk.ReadOnly, false)
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
			now, was := &obj.Status, &old.Status
			switch moved := metaTime(rq.Now); {
			case now.Phase == was.Phase && now.LastPhaseTransitionTime == nil:
				now.LastPhaseTransitionTime = was.LastPhaseTransitionTime
			case now.Phase != was.Phase && (now.LastPhaseTransitionTime == nil || now.LastPhaseTransitionTime.Equal(was.LastPhaseTransitionTime)):
				now.LastPhaseTransitionTime = &moved
			}
		},
		Reset: []string{"spec"},
	},
	Docs: map[string]string{
		"Capacity":              corev1.PersistentVolumeSpec{}.SwaggerDoc()["capacity"],
		"Access Modes":          corev1.PersistentVolumeSpec{}.SwaggerDoc()["accessModes"],
		"Reclaim Policy":        corev1.PersistentVolumeSpec{}.SwaggerDoc()["persistentVolumeReclaimPolicy"],
		"Status":                corev1.PersistentVolumeStatus{}.SwaggerDoc()["phase"],
		"Claim":                 corev1.PersistentVolumeSpec{}.SwaggerDoc()["claimRef"],
		"StorageClass":          corev1.PersistentVolumeSpec{}.SwaggerDoc()["storageClassName"],
		"VolumeAttributesClass": corev1.PersistentVolumeSpec{}.SwaggerDoc()["volumeAttributesClassName"],
		"Reason":                corev1.PersistentVolumeStatus{}.SwaggerDoc()["reason"],
		"VolumeMode":            corev1.PersistentVolumeSpec{}.SwaggerDoc()["volumeMode"],
	},
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
		at := p.Child("capacity").Key(string(name))
		if q.Sign() < 0 {
			f.Invalid(at, q.Value(), "must be a valid resource quantity")
		}
		if q.Sign() <= 0 {
			f.Invalid(at, q.String(), check.NotPositive)
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
	validateVolumeSource(&f, v, p)
	if s.HostPath != nil && path.Clean(s.HostPath.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		f.Forbidden(p.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'")
	}
	if s.StorageClassName != "" {
		f.Subdomain(p.Child("storageClassName"), s.StorageClassName)
	}
	check.AmongPtr(&f, p.Child("volumeMode"), s.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	validateAttributesClass(&f, s, p)
	if old == nil {
		return f.List()
	}
	if !equality.Semantic.DeepEqual(s.PersistentVolumeSource, old.Spec.PersistentVolumeSource) && !onlySecretsAdded(s, &old.Spec) {
		f.Forbidden(p.Child("persistentvolumesource"), fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v",
			diff.Diff(check.Shown(old.Spec.PersistentVolumeSource), check.Shown(s.PersistentVolumeSource))))
	}
	f.Same(field.NewPath("volumeMode"), s.VolumeMode, old.Spec.VolumeMode)
	if old.Spec.NodeAffinity != nil && !sameAffinity.DeepEqual(s.NodeAffinity, old.Spec.NodeAffinity) {
		f.Invalid(field.NewPath("nodeAffinity"), check.Shown(s.NodeAffinity), check.Immutable+", except for updating from beta label to GA")
	}
	if old.Spec.VolumeAttributesClassName != nil && s.VolumeAttributesClassName == nil {
		f.Forbidden(p.Child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden")
	}
	return f.List()
}

// validateInlineVolume holds for a volume that has no object of its own: a pod's volume that was moved to a CSI driver.
func validateInlineVolume(f *check.Faults, s *corev1.PersistentVolumeSpec, p *field.Path) {
	const inline = "in the context of inline volumes"
	absent := func(set bool, name string) {
		if set {
			f.Forbidden(p.Child(name), "may not be specified "+inline)
		}
	}
	absent(s.ClaimRef != nil, "claimRef")
	absent(len(s.Capacity) > 0, "capacity")
	if s.CSI == nil {
		f.Required(p.Child("csi"), "has to be specified "+inline)
	}
	f.Add(podrules.ValidateAccessModes(s.AccessModes, "", p.Child("accessModes")))
	if r := s.PersistentVolumeReclaimPolicy; r != "" && r != corev1.PersistentVolumeReclaimRetain {
		f.Forbidden(p.Child("persistentVolumeReclaimPolicy"), "may only be Retain "+inline)
	}
	absent(s.NodeAffinity != nil, "nodeAffinity")
	validateVolumeSource(f, &volume{Spec: *s}, p)
	absent(s.StorageClassName != "", "storageClassName")
	if m := s.VolumeMode; m != nil && *m != corev1.PersistentVolumeFilesystem {
		f.Forbidden(p.Child("volumeMode"), "may not specify volumeMode other than Filesystem "+inline)
	}
	validateAttributesClass(f, s, p)
}

func validateAttributesClass(f *check.Faults, s *corev1.PersistentVolumeSpec, p *field.Path) {
	c := s.VolumeAttributesClassName
	if c == nil {
		return
	}
	if *c == "" {
		f.Required(p.Child("volumeAttributesClassName"), "an empty string is disallowed")
	} else {
		f.Subdomain(p.Child("volumeAttributesClassName"), *c)
	}
	if s.CSI == nil {
		f.Required(p.Child("csi"), "has to be specified when using volumeAttributesClassName")
	}
}

// sameAffinity lets a beta label of a volume's place become the one that has replaced it.
var sameAffinity = func() conversion.Equalities {
	successor := map[string]string{
		corev1.LabelFailureDomainBetaZone: corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
		"beta.kubernetes.io/os": corev1.LabelOSStable, "beta.kubernetes.io/arch": corev1.LabelArchStable,
		corev1.LabelInstanceType: corev1.LabelInstanceTypeStable,
	}
	eq := equality.Semantic.Copy()
	if err := eq.AddFunc(func(now, was corev1.NodeSelectorRequirement) bool {
		if successor[was.Key] == now.Key {
			was.Key = now.Key
		}
		return equality.Semantic.DeepEqual(now, was)
	}); err != nil {
		panic(err) // the function has the wrong form
	}
	return eq
}()

// onlySecretsAdded: a CSI volume may be told its expansion secret later, once.
func onlySecretsAdded(s, old *corev1.PersistentVolumeSpec) bool {
	if s.CSI == nil || old.CSI == nil || old.CSI.ControllerExpandSecretRef != nil {
		return false
	}
	was := old.PersistentVolumeSource.DeepCopy()
	was.CSI.ControllerExpandSecretRef = s.CSI.ControllerExpandSecretRef
	return equality.Semantic.DeepEqual(s.PersistentVolumeSource, *was)
}

// validateVolumeSource holds the rules of each place that a volume may be in.
func validateVolumeSource(f *check.Faults, v *volume, p *field.Path) {
	s := &v.Spec
	secret := func(ref *corev1.SecretReference, names bool, p *field.Path) {
		if ref == nil {
			return
		}
		if f.Need(p.Child("name"), ref.Name) && names {
			f.Subdomain(p.Child("name"), ref.Name)
		}
		if f.Need(p.Child("namespace"), ref.Namespace) && names {
			f.Label(p.Child("namespace"), ref.Namespace)
		}
	}
	podrules.OneSource(f, p,
		podrules.Source{Name: "hostPath", Set: s.HostPath != nil, Rules: func(f *check.Faults, p *field.Path) { podrules.HostPath(f, s.HostPath, p) }},
		podrules.Source{Name: "gcePersistentDisk", At: "persistentDisk", Set: s.GCEPersistentDisk != nil, Rules: func(f *check.Faults, p *field.Path) {
			podrules.GCEPersistentDisk(f, s.GCEPersistentDisk, p)
		}},
		podrules.Source{Name: "awsElasticBlockStore", Set: s.AWSElasticBlockStore != nil, Rules: func(f *check.Faults, p *field.Path) {
			podrules.AWSElasticBlockStore(f, s.AWSElasticBlockStore, p)
		}},
		podrules.Source{Name: "glusterfs", Set: s.Glusterfs != nil, Rules: func(f *check.Faults, p *field.Path) {
			podrules.Glusterfs(f, s.Glusterfs.EndpointsName, s.Glusterfs.Path, p)
			switch ns := s.Glusterfs.EndpointsNamespace; {
			case ns == nil:
			case *ns == "":
				f.Invalid(p.Child("endpointsNamespace"), *ns, "if the endpointnamespace is set, it must be a valid namespace name")
			default:
				f.Label(p.Child("endpointsNamespace"), *ns)
			}
		}},
		podrules.Source{Name: "flocker", Set: s.Flocker != nil, Rules: func(f *check.Faults, p *field.Path) { podrules.Flocker(f, s.Flocker, p) }},
		podrules.Source{Name: "nfs", Set: s.NFS != nil, Rules: func(f *check.Faults, p *field.Path) { podrules.NFS(f, s.NFS, p) }},
		podrules.Source{Name: "rbd", Set: s.RBD != nil, Rules: func(f *check.Faults, p *field.Path) {
			podrules.RBD(f, s.RBD.CephMonitors, s.RBD.RBDImage, p)
		}},
		podrules.Source{Name: "quobyte", Set: s.Quobyte != nil, Rules: func(f *check.Faults, p *field.Path) { podrules.Quobyte(f, s.Quobyte, p) }},
		podrules.Source{Name: "cephFS", At: "cephfs", Set: s.CephFS != nil, Rules: func(f *check.Faults, p *field.Path) { podrules.CephFS(f, s.CephFS.Monitors, p) }},
		podrules.Source{Name: "iscsi", Set: s.ISCSI != nil, Rules: func(f *check.Faults, p *field.Path) {
			i := s.ISCSI
			podrules.ISCSI{Portal: i.TargetPortal, IQN: i.IQN, Lun: i.Lun, Auth: i.DiscoveryCHAPAuth || i.SessionCHAPAuth,
				HasSecret: i.SecretRef != nil, Initiator: i.InitiatorName}.Check(f, v.Name, p)
			if i.SecretRef != nil {
				f.Need(p.Child("secretRef", "name"), i.SecretRef.Name)
			}
		}},
		podrules.Source{Name: "cinder", Set: s.Cinder != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("volumeID"), s.Cinder.VolumeID)
			secret(s.Cinder.SecretRef, false, p.Child("secretRef"))
		}},
		podrules.Source{Name: "fc", Set: s.FC != nil, Rules: func(f *check.Faults, p *field.Path) { podrules.FC(f, s.FC, p) }},
		podrules.Source{Name: "flexVolume", Set: s.FlexVolume != nil, Rules: func(f *check.Faults, p *field.Path) {
			podrules.FlexVolume(f, s.FlexVolume.Driver, s.FlexVolume.Options, p)
		}},
		podrules.Source{Name: "azureFile", Set: s.AzureFile != nil, Rules: func(f *check.Faults, p *field.Path) {
			podrules.AzureFile(f, s.AzureFile.SecretName, s.AzureFile.ShareName, p)
			if ns := s.AzureFile.SecretNamespace; ns != nil {
				f.Need(p.Child("secretNamespace"), *ns)
			}
		}},
		podrules.Source{Name: "vsphereVolume", Set: s.VsphereVolume != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("volumePath"), s.VsphereVolume.VolumePath)
		}},
		podrules.Source{Name: "photonPersistentDisk", Set: s.PhotonPersistentDisk != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("pdID"), s.PhotonPersistentDisk.PdID)
		}},
		podrules.Source{Name: "portworxVolume", Set: s.PortworxVolume != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("volumeID"), s.PortworxVolume.VolumeID)
		}},
		podrules.Source{Name: "azureDisk", Set: s.AzureDisk != nil, Rules: func(f *check.Faults, p *field.Path) { podrules.AzureDisk(f, s.AzureDisk, p) }},
		podrules.Source{Name: "scaleIO", Set: s.ScaleIO != nil, Rules: func(f *check.Faults, p *field.Path) {
			podrules.ScaleIO(f, s.ScaleIO.Gateway, s.ScaleIO.System, s.ScaleIO.VolumeName, p)
		}},
		podrules.Source{Name: "local", Set: s.Local != nil, Rules: func(f *check.Faults, at *field.Path) {
			if f.Need(at.Child("path"), s.Local.Path) {
				podrules.NoBacksteps(f, s.Local.Path, at.Child("path"))
			}
			if s.NodeAffinity == nil {
				f.Required(p.Child("nodeAffinity"), "Local volume requires node affinity")
			}
		}},
		podrules.Source{Name: "storageos", Set: s.StorageOS != nil, Rules: func(f *check.Faults, p *field.Path) {
			podrules.StorageOS(f, s.StorageOS.VolumeName, s.StorageOS.VolumeNamespace, p)
			if ref := s.StorageOS.SecretRef; ref != nil {
				f.Need(p.Child("secretRef", "name"), ref.Name)
				f.Need(p.Child("secretRef", "namespace"), ref.Namespace)
			}
		}},
		podrules.Source{Name: "csi", Set: s.CSI != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Add(podrules.ValidateCSIDriverName(s.CSI.Driver, p.Child("driver")))
			f.Need(p.Child("volumeHandle"), s.CSI.VolumeHandle)
			secret(s.CSI.ControllerPublishSecretRef, true, p.Child("controllerPublishSecretRef"))
			secret(s.CSI.ControllerExpandSecretRef, true, p.Child("controllerExpandSecretRef"))
			secret(s.CSI.NodePublishSecretRef, true, p.Child("nodePublishSecretRef"))
			secret(s.CSI.NodeExpandSecretRef, true, p.Child("nodeExpandSecretRef"))
		}},
	)
}
