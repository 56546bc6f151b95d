package podrules

import (
	"reflect"
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

func (r *specRules) validateVolumes(p *field.Path) {
	r.volumes = map[string]corev1.VolumeSource{}
	claims := map[string]bool{}
	for _, v := range r.spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			claims[v.PersistentVolumeClaim.ClaimName] = true
		}
	}
	for i := range r.spec.Volumes {
		v, at := &r.spec.Volumes[i], p.Index(i)
		if r.Need(at.Child("name"), v.Name) {
			r.Label(at.Child("name"), v.Name)
			if _, again := r.volumes[v.Name]; again {
				r.Duplicate(at.Child("name"), v.Name)
			}
		}
		r.volumes[v.Name] = v.VolumeSource
		r.validateVolume(v, at)
		if v.Ephemeral != nil && r.meta != nil && r.meta.Name != "" {
			name := r.meta.Name + "-" + v.Name
			if claims[name] {
				r.Invalid(at.Child("persistentVolumeClaim", "claimName"), name, "must not reference a PVC that gets created for an ephemeral volume")
			}
			for _, msg := range validation.IsDNS1123Subdomain(name) {
				r.Invalid(at.Child("name"), v.Name, "PVC name \""+name+"\": "+msg)
			}
		}
	}
}

// validateVolume: exactly one source, and that one is sound.
func (r *specRules) validateVolume(v *corev1.Volume, p *field.Path) {
	first := ""
	sources := reflect.ValueOf(&v.VolumeSource).Elem()
	for i := range sources.NumField() {
		if sources.Field(i).IsNil() {
			continue
		}
		name, _, _ := strings.Cut(sources.Type().Field(i).Tag.Get("json"), ",")
		if first != "" {
			r.Forbidden(p.Child(name), oneVolume)
			continue
		}
		first = name
	}
	if first == "" {
		r.Required(p, "must specify a volume type")
		return
	}
	p = p.Child(first)
	switch first {
	case "emptyDir":
		if l := v.EmptyDir.SizeLimit; l != nil && l.Sign() < 0 {
			r.Forbidden(p.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")
		}
	case "hostPath":
		if r.Need(p.Child("path"), v.HostPath.Path) {
			if hasBackstep(v.HostPath.Path) {
				r.Invalid(p.Child("path"), v.HostPath.Path, "must not contain '..'")
			}
			check.AmongPtr(&r.Faults, p.Child("type"), v.HostPath.Type, corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
				corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)
		}
	case "secret":
		r.Need(p.Child("secretName"), v.Secret.SecretName)
		r.mode(v.Secret.DefaultMode, p.Child("defaultMode"))
		r.items(v.Secret.Items, p.Child("items"))
	case "configMap":
		r.Need(p.Child("name"), v.ConfigMap.Name)
		r.mode(v.ConfigMap.DefaultMode, p.Child("defaultMode"))
		r.items(v.ConfigMap.Items, p.Child("items"))
	case "downwardAPI":
		r.mode(v.DownwardAPI.DefaultMode, p.Child("defaultMode"))
		for i := range v.DownwardAPI.Items {
			r.downwardFile(&v.DownwardAPI.Items[i], p)
		}
	case "projected":
		r.validateProjected(v.Projected, p)
	case "persistentVolumeClaim":
		r.Need(p.Child("claimName"), v.PersistentVolumeClaim.ClaimName)
	case "ephemeral":
		if v.Ephemeral.VolumeClaimTemplate == nil {
			r.Required(p.Child("volumeClaimTemplate"), "")
		} else if r.claimSpec != nil {
			r.Add(r.claimSpec(&v.Ephemeral.VolumeClaimTemplate.Spec, p.Child("volumeClaimTemplate", "spec")))
		}
	case "csi":
		r.Add(ValidateCSIDriverName(v.CSI.Driver, p.Child("driver")))
		if ref := v.CSI.NodePublishSecretRef; ref != nil {
			r.Need(p.Child("nodePublishSecretRef", "name"), ref.Name)
		}
	case "image":
		if r.pod {
			r.Need(p.Child("reference"), v.Image.Reference)
		}
		check.AmongOrEmpty(&r.Faults, p.Child("pullPolicy"), v.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	case "nfs":
		r.Add(ValidateNFS(v.NFS, p))
	case "iscsi":
		r.Need(p.Child("targetPortal"), v.ISCSI.TargetPortal)
		r.Need(p.Child("iqn"), v.ISCSI.IQN)
		if v.ISCSI.Lun < 0 || v.ISCSI.Lun > 255 {
			r.Invalid(p.Child("lun"), v.ISCSI.Lun, validation.InclusiveRangeError(0, 255))
		}
		if (v.ISCSI.DiscoveryCHAPAuth || v.ISCSI.SessionCHAPAuth) && v.ISCSI.SecretRef == nil {
			r.Required(p.Child("secretRef"), "")
		}
	default:
		r.Add(ValidateLegacyVolume(&v.VolumeSource, p))
	}
}

// ValidateNFS is shared by pods and persistent volumes.
func ValidateNFS(n *corev1.NFSVolumeSource, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Need(p.Child("server"), n.Server)
	f.Need(p.Child("path"), n.Path)
	if !strings.HasPrefix(n.Path, "/") {
		f.Invalid(p.Child("path"), n.Path, "must be an absolute path")
	}
	return f.List()
}

// ValidateLegacyVolume demands what the in-tree volume types of old cannot do without. p ends in the type's name.
func ValidateLegacyVolume(v *corev1.VolumeSource, p *field.Path) field.ErrorList {
	var f check.Faults
	switch {
	case v.GitRepo != nil:
		f.Need(p.Child("repository"), v.GitRepo.Repository)
		if d := v.GitRepo.Directory; strings.HasPrefix(d, "/") {
			f.Invalid(p.Child("directory"), d, "must be a relative path")
		} else if hasBackstep(d) {
			f.Invalid(p.Child("directory"), d, "must not contain '..'")
		}
	case v.GCEPersistentDisk != nil:
		f.Need(p.Child("pdName"), v.GCEPersistentDisk.PDName)
		partition(&f, v.GCEPersistentDisk.Partition, p)
	case v.AWSElasticBlockStore != nil:
		f.Need(p.Child("volumeID"), v.AWSElasticBlockStore.VolumeID)
		partition(&f, v.AWSElasticBlockStore.Partition, p)
	case v.Glusterfs != nil:
		f.Need(p.Child("endpoints"), v.Glusterfs.EndpointsName)
		f.Need(p.Child("path"), v.Glusterfs.Path)
	case v.RBD != nil:
		if len(v.RBD.CephMonitors) == 0 {
			f.Required(p.Child("monitors"), "")
		}
		f.Need(p.Child("image"), v.RBD.RBDImage)
	case v.Cinder != nil:
		f.Need(p.Child("volumeID"), v.Cinder.VolumeID)
	case v.CephFS != nil:
		if len(v.CephFS.Monitors) == 0 {
			f.Required(p.Child("monitors"), "")
		}
	case v.FC != nil:
		switch {
		case len(v.FC.TargetWWNs) == 0 && len(v.FC.WWIDs) == 0:
			f.Required(p.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both")
		case len(v.FC.TargetWWNs) > 0 && len(v.FC.WWIDs) > 0:
			f.Invalid(p.Child("targetWWNs"), v.FC.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously")
		case len(v.FC.TargetWWNs) > 0 && v.FC.Lun == nil:
			f.Required(p.Child("lun"), "lun is required if targetWWNs is specified")
		}
	case v.FlexVolume != nil:
		f.Need(p.Child("driver"), v.FlexVolume.Driver)
	case v.AzureFile != nil:
		f.Need(p.Child("secretName"), v.AzureFile.SecretName)
		f.Need(p.Child("shareName"), v.AzureFile.ShareName)
	case v.AzureDisk != nil:
		f.Need(p.Child("diskName"), v.AzureDisk.DiskName)
		f.Need(p.Child("diskURI"), v.AzureDisk.DataDiskURI)
	case v.VsphereVolume != nil:
		f.Need(p.Child("volumePath"), v.VsphereVolume.VolumePath)
	case v.PhotonPersistentDisk != nil:
		f.Need(p.Child("pdID"), v.PhotonPersistentDisk.PdID)
	case v.PortworxVolume != nil:
		f.Need(p.Child("volumeID"), v.PortworxVolume.VolumeID)
	case v.ScaleIO != nil:
		f.Need(p.Child("gateway"), v.ScaleIO.Gateway)
		f.Need(p.Child("system"), v.ScaleIO.System)
		f.Need(p.Child("volumeName"), v.ScaleIO.VolumeName)
	case v.Quobyte != nil:
		if v.Quobyte.Registry == "" {
			f.Required(p.Child("registry"), "must be a host:port pair or multiple pairs separated by commas")
		}
		f.Need(p.Child("volume"), v.Quobyte.Volume)
	case v.Flocker != nil:
		if v.Flocker.DatasetName == "" && v.Flocker.DatasetUUID == "" {
			f.Required(p, "one of datasetName and datasetUUID is required")
		}
	case v.StorageOS != nil:
		f.Need(p.Child("volumeName"), v.StorageOS.VolumeName)
	}
	return f.List()
}

func partition(f *check.Faults, n int32, p *field.Path) {
	if n < 0 || n > 255 {
		f.Invalid(p.Child("partition"), n, validation.InclusiveRangeError(1, 255))
	}
}

// ValidateCSIDriverName is the rule for the name of a CSI driver, wherever it stands.
func ValidateCSIDriverName(name string, p *field.Path) field.ErrorList {
	var f check.Faults
	if f.Need(p, name) {
		if len(name) > 63 {
			f.TooLong(p, "", 63)
		}
		f.Subdomain(p, strings.ToLower(name))
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
		if r.Need(at.Child("path"), item.Path) {
			r.ownPath(item.Path, at.Child("path"))
		}
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
	if r.Need(p.Child("path"), f.Path) {
		r.ownPath(f.Path, p.Child("path"))
	}
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

func (r *specRules) validateProjected(v *corev1.ProjectedVolumeSource, p *field.Path) {
	r.mode(v.DefaultMode, p.Child("defaultMode"))
	paths := check.Seen[string]{}
	unique := func(path string, value any) {
		if path != "" && paths.Again(path) {
			r.Invalid(p, value, samePaths)
		}
	}
	for i, s := range v.Sources {
		at, n := p.Child("sources").Index(i), 0
		if s.Secret != nil {
			n++
			r.Need(at.Child("secret", "name"), s.Secret.Name)
			r.items(s.Secret.Items, at.Child("secret", "items"))
			for _, item := range s.Secret.Items {
				unique(item.Path, s.Secret.Name)
			}
		}
		if s.ConfigMap != nil {
			n++
			r.Need(at.Child("configMap", "name"), s.ConfigMap.Name)
			r.items(s.ConfigMap.Items, at.Child("configMap", "items"))
			for _, item := range s.ConfigMap.Items {
				unique(item.Path, s.ConfigMap.Name)
			}
		}
		if s.DownwardAPI != nil {
			n++
			for j := range s.DownwardAPI.Items {
				r.downwardFile(&s.DownwardAPI.Items[j], at.Child("downwardAPI"))
				unique(s.DownwardAPI.Items[j].Path, s.DownwardAPI.Items[j].Path)
			}
		}
		if t := s.ServiceAccountToken; t != nil {
			n++
			if seconds := t.ExpirationSeconds; seconds != nil {
				at := at.Child("serviceAccountToken", "expirationSeconds")
				if *seconds < 600 {
					r.Invalid(at, *seconds, "may not specify a duration less than 10 minutes")
				} else if *seconds > 1<<32 {
					r.Invalid(at, *seconds, "may not specify a duration larger than 2^32 seconds")
				}
			}
			if r.Need(p.Child("path"), t.Path) {
				r.ownPath(t.Path, p.Child("path"))
			}
		}
		if b := s.ClusterTrustBundle; b != nil {
			n++
			at := at.Child("clusterTrustBundle")
			switch {
			case b.Name != nil && b.SignerName != nil:
				r.Invalid(at, b, "only one of name and signerName may be used")
			case b.Name == nil && b.SignerName == nil:
				r.Required(at, "either name or signerName must be specified")
			case b.Name != nil && *b.Name == "":
				r.Required(at.Child("name"), "must be a valid object name")
			case b.Name != nil && b.LabelSelector != nil:
				r.Invalid(at.Child("labelSelector"), b.LabelSelector, "labelSelector must be unset if name is specified")
			case b.SignerName != nil && *b.SignerName == "":
				r.Required(at.Child("signerName"), "must be a valid signer name")
			}
			r.Add(selectorFaults(b.LabelSelector, at.Child("labelSelector")))
			if r.Need(at.Child("path"), b.Path) {
				r.ownPath(b.Path, at.Child("path"))
				unique(b.Path, b.Path)
			}
		}
		if c := s.PodCertificate; c != nil {
			n++
			at := at.Child("podCertificate")
			r.Need(at.Child("signerName"), c.SignerName)
			check.Among(&r.Faults, at.Child("keyType"), c.KeyType, "RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519")
			if c.MaxExpirationSeconds != nil && *c.MaxExpirationSeconds < 3600 {
				r.Invalid(at.Child("maxExpirationSeconds"), *c.MaxExpirationSeconds, "if provided, maxExpirationSeconds must be >= 3600")
			}
			set := false
			for name, path := range map[string]string{
				"credentialBundlePath": c.CredentialBundlePath, "keyPath": c.KeyPath, "certificateChainPath": c.CertificateChainPath,
			} {
				if path != "" {
					set = true
					r.ownPath(path, at.Child(name))
					unique(path, path)
				}
			}
			if !set {
				r.Required(at, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath")
			}
		}
		if n > 1 {
			r.Forbidden(at, "may not specify more than 1 volume type per source")
		}
	}
}
