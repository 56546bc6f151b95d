package podrules

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

type quantity = resource.Quantity

func parseQuantity(s string) (quantity, error) { return resource.ParseQuantity(s) }

const (
	fileMode  = "must be a number between 0 and 0777 (octal), both inclusive"
	oneVolume = "may not specify more than 1 volume type"
	samePaths = "conflicting duplicate paths"
)

// validateVolumes notes the volumes that are sound: what mounts another one is told that there is none.
func (r *specRules) validateVolumes(p *field.Path) {
	r.volumes = map[string]corev1.VolumeSource{}
	created := map[string]bool{} // claims made for ephemeral volumes
	if r.meta != nil && r.meta.Name != "" {
		for _, v := range r.spec.Volumes {
			if v.Ephemeral != nil {
				created[r.meta.Name+"-"+v.Name] = true
			}
		}
	}
	for i := range r.spec.Volumes {
		v, at := &r.spec.Volumes[i], p.Index(i)
		before := len(r.List())
		r.validateVolume(v, at)
		if r.Need(at.Child("name"), v.Name) {
			r.Label(at.Child("name"), v.Name)
		}
		if _, again := r.volumes[v.Name]; again {
			r.Duplicate(at.Child("name"), v.Name)
		}
		if len(r.List()) == before {
			r.volumes[v.Name] = v.VolumeSource
		}
		if c := v.PersistentVolumeClaim; c != nil && created[c.ClaimName] {
			r.Invalid(at.Child("persistentVolumeClaim", "claimName"), c.ClaimName, "must not reference a PVC that gets created for an ephemeral volume")
		}
	}
}

// Source is one of the places that a volume may come from.
type Source struct {
	Name  string // as the refusal of a second source spells it
	At    string // where its rules report, if not at Name
	Set   bool
	Rules func(f *check.Faults, p *field.Path) // only called when Set
}

// OneSource demands exactly one source and checks it; the order decides which is called the second.
func OneSource(f *check.Faults, p *field.Path, sources ...Source) {
	n := 0
	for _, s := range sources {
		if !s.Set {
			continue
		}
		if n++; n > 1 {
			f.Forbidden(p.Child(s.Name), oneVolume)
			continue
		}
		at := s.Name
		if s.At != "" {
			at = s.At
		}
		s.Rules(f, p.Child(at))
	}
	if n == 0 {
		f.Required(p, "must specify a volume type")
	}
}

// validateVolume: exactly one source, and that one is sound.
func (r *specRules) validateVolume(v *corev1.Volume, p *field.Path) {
	s := &v.VolumeSource
	own := func(rule func(p *field.Path)) func(*check.Faults, *field.Path) {
		return func(_ *check.Faults, p *field.Path) { rule(p) }
	}
	OneSource(&r.Faults, p,
		Source{Name: "emptyDir", Set: s.EmptyDir != nil, Rules: func(f *check.Faults, p *field.Path) {
			if l := s.EmptyDir.SizeLimit; l != nil && l.Sign() < 0 {
				f.Forbidden(p.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")
			}
		}},
		Source{Name: "hostPath", Set: s.HostPath != nil, Rules: func(f *check.Faults, p *field.Path) { HostPath(f, s.HostPath, p) }},
		Source{Name: "gitRepo", Set: s.GitRepo != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("repository"), s.GitRepo.Repository)
			r.inside(s.GitRepo.Directory, p.Child("directory"))
		}},
		Source{Name: "gcePersistentDisk", At: "persistentDisk", Set: s.GCEPersistentDisk != nil, Rules: func(f *check.Faults, p *field.Path) {
			GCEPersistentDisk(f, s.GCEPersistentDisk, p)
		}},
		Source{Name: "awsElasticBlockStore", Set: s.AWSElasticBlockStore != nil, Rules: func(f *check.Faults, p *field.Path) {
			AWSElasticBlockStore(f, s.AWSElasticBlockStore, p)
		}},
		Source{Name: "secret", Set: s.Secret != nil, Rules: own(func(p *field.Path) {
			r.Need(p.Child("secretName"), s.Secret.SecretName)
			r.mode(s.Secret.DefaultMode, p.Child("defaultMode"))
			r.items(s.Secret.Items, p.Child("items"))
		})},
		Source{Name: "nfs", Set: s.NFS != nil, Rules: func(f *check.Faults, p *field.Path) { NFS(f, s.NFS, p) }},
		Source{Name: "iscsi", Set: s.ISCSI != nil, Rules: func(f *check.Faults, p *field.Path) {
			i := s.ISCSI
			ISCSI{i.TargetPortal, i.IQN, i.Lun, i.DiscoveryCHAPAuth || i.SessionCHAPAuth, i.SecretRef != nil, i.InitiatorName}.check(f, iscsiFormat+iscsiStarts, p)
		}},
		Source{Name: "glusterfs", Set: s.Glusterfs != nil, Rules: func(f *check.Faults, p *field.Path) {
			Glusterfs(f, s.Glusterfs.EndpointsName, s.Glusterfs.Path, p)
		}},
		Source{Name: "flocker", Set: s.Flocker != nil, Rules: func(f *check.Faults, p *field.Path) { Flocker(f, s.Flocker, p) }},
		Source{Name: "persistentVolumeClaim", Set: s.PersistentVolumeClaim != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("claimName"), s.PersistentVolumeClaim.ClaimName)
		}},
		Source{Name: "rbd", Set: s.RBD != nil, Rules: func(f *check.Faults, p *field.Path) { RBD(f, s.RBD.CephMonitors, s.RBD.RBDImage, p) }},
		Source{Name: "cinder", Set: s.Cinder != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("volumeID"), s.Cinder.VolumeID)
			localSecret(f, s.Cinder.SecretRef, p)
		}},
		Source{Name: "cephFS", At: "cephfs", Set: s.CephFS != nil, Rules: func(f *check.Faults, p *field.Path) { CephFS(f, s.CephFS.Monitors, p) }},
		Source{Name: "quobyte", Set: s.Quobyte != nil, Rules: func(f *check.Faults, p *field.Path) { Quobyte(f, s.Quobyte, p) }},
		Source{Name: "downwarAPI", At: "downwardAPI", Set: s.DownwardAPI != nil, Rules: own(func(p *field.Path) {
			r.mode(s.DownwardAPI.DefaultMode, p.Child("defaultMode"))
			for i := range s.DownwardAPI.Items {
				r.downwardFile(&s.DownwardAPI.Items[i], p)
			}
		})},
		Source{Name: "fc", Set: s.FC != nil, Rules: func(f *check.Faults, p *field.Path) { FC(f, s.FC, p) }},
		Source{Name: "flexVolume", Set: s.FlexVolume != nil, Rules: func(f *check.Faults, p *field.Path) {
			FlexVolume(f, s.FlexVolume.Driver, s.FlexVolume.Options, p)
		}},
		Source{Name: "configMap", Set: s.ConfigMap != nil, Rules: own(func(p *field.Path) {
			r.Need(p.Child("name"), s.ConfigMap.Name)
			r.mode(s.ConfigMap.DefaultMode, p.Child("defaultMode"))
			r.items(s.ConfigMap.Items, p.Child("items"))
		})},
		Source{Name: "azureFile", Set: s.AzureFile != nil, Rules: func(f *check.Faults, p *field.Path) {
			AzureFile(f, s.AzureFile.SecretName, s.AzureFile.ShareName, p)
		}},
		Source{Name: "vsphereVolume", Set: s.VsphereVolume != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("volumePath"), s.VsphereVolume.VolumePath)
		}},
		Source{Name: "photonPersistentDisk", Set: s.PhotonPersistentDisk != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("pdID"), s.PhotonPersistentDisk.PdID)
		}},
		Source{Name: "portworxVolume", Set: s.PortworxVolume != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Need(p.Child("volumeID"), s.PortworxVolume.VolumeID)
		}},
		Source{Name: "azureDisk", Set: s.AzureDisk != nil, Rules: func(f *check.Faults, p *field.Path) { AzureDisk(f, s.AzureDisk, p) }},
		Source{Name: "storageos", Set: s.StorageOS != nil, Rules: func(f *check.Faults, p *field.Path) {
			StorageOS(f, s.StorageOS.VolumeName, s.StorageOS.VolumeNamespace, p)
			localSecret(f, s.StorageOS.SecretRef, p)
		}},
		Source{Name: "projected", Set: s.Projected != nil, Rules: own(func(p *field.Path) { r.validateProjected(s.Projected, p) })},
		Source{Name: "scaleIO", Set: s.ScaleIO != nil, Rules: func(f *check.Faults, p *field.Path) {
			ScaleIO(f, s.ScaleIO.Gateway, s.ScaleIO.System, s.ScaleIO.VolumeName, p)
		}},
		Source{Name: "csi", Set: s.CSI != nil, Rules: func(f *check.Faults, p *field.Path) {
			f.Add(ValidateCSIDriverName(s.CSI.Driver, p.Child("driver")))
			if ref := s.CSI.NodePublishSecretRef; ref != nil && f.Need(p.Child("nodePublishSecretRef", "name"), ref.Name) {
				f.Subdomain(p.Child("name"), ref.Name)
			}
		}},
		Source{Name: "ephemeral", Set: s.Ephemeral != nil, Rules: func(f *check.Faults, p *field.Path) {
			t := s.Ephemeral.VolumeClaimTemplate
			if t == nil {
				f.Required(p.Child("volumeClaimTemplate"), "")
				return
			}
			f.Add(ValidateClaimTemplate(t, p.Child("volumeClaimTemplate")))
		}},
		Source{Name: "image", Set: s.Image != nil, Rules: func(f *check.Faults, p *field.Path) {
			if r.pod {
				f.Need(p.Child("reference"), s.Image.Reference)
			}
			check.AmongOrEmpty(f, p.Child("pullPolicy"), s.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
		}},
	)
	if i := s.ISCSI; i != nil && i.InitiatorName != nil && len(v.Name+":"+i.TargetPortal) > iscsiPortalMax {
		r.Invalid(p.Child("name"), v.Name, iscsiTooLong)
	}
	if s.Ephemeral != nil && r.meta != nil && r.meta.Name != "" && v.Name != "" {
		name := r.meta.Name + "-" + v.Name
		for _, msg := range validation.IsDNS1123Subdomain(name) {
			r.Invalid(p.Child("name"), v.Name, fmt.Sprintf("PVC name %q: %v", name, msg))
		}
	}
}

// ValidateCSIDriverName is the rule for the name of a CSI driver, wherever it stands.
func ValidateCSIDriverName(name string, p *field.Path) field.ErrorList {
	var f check.Faults
	if f.Need(p, name) {
		if len(name) > 63 {
			f.TooLong(p, "", 63)
		}
		f.Each(p, name, validation.IsDNS1123Subdomain(strings.ToLower(name)))
	}
	return f.List()
}

func (r *specRules) mode(m *int32, p *field.Path) {
	if m != nil && (*m < 0 || *m > 0o777) {
		r.Invalid(p, *m, fileMode)
	}
}

func (r *specRules) items(items []corev1.KeyToPath, p *field.Path) {
	for i, item := range items {
		at := p.Index(i)
		r.Need(at.Child("key"), item.Key)
		r.Need(at.Child("path"), item.Path)
		r.ownPath(item.Path, at.Child("path"))
		r.mode(item.Mode, at.Child("mode"))
	}
}

// ownPath: a relative path that does not collide with the names that the
// kubelet uses for its own links, which start with "..".
func (r *specRules) ownPath(path string, p *field.Path) {
	r.inside(path, p)
	if strings.HasPrefix(path, "..") && !strings.HasPrefix(path, "../") {
		r.Invalid(p, path, "must not start with '..'")
	}
}

func (r *specRules) downwardFile(f *corev1.DownwardAPIVolumeFile, p *field.Path) {
	r.Need(p.Child("path"), f.Path)
	r.ownPath(f.Path, p.Child("path"))
	switch {
	case f.FieldRef != nil:
		r.validateFieldRef(f.FieldRef, fileFields, p.Child("fieldRef"))
		if f.ResourceFieldRef != nil {
			r.Invalid(p, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
		}
	case f.ResourceFieldRef != nil:
		r.validateResourceRef(f.ResourceFieldRef, true, p.Child("resourceFieldRef"))
	default:
		r.Required(p, "one of fieldRef and resourceFieldRef is required")
	}
	r.mode(f.Mode, p.Child("mode"))
}

// hasBackstep reports a ".." among the parts of a path.
func hasBackstep(path string) bool { return slices.Contains(strings.Split(path, "/"), "..") }

// inside: a relative path that stays below where it starts.
func (r *specRules) inside(path string, p *field.Path) {
	if strings.HasPrefix(path, "/") {
		r.Invalid(p, path, "must be a relative path")
	}
	NoBacksteps(&r.Faults, path, p)
}
