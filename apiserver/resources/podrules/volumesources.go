package podrules

import (
	"path"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// The volume sources that pods and persistent volumes have in common. Where the
// two have types of their own, the rules take the fields. p is the path of the source.

// HostPath: a path without backsteps, of a known type.
func HostPath(f *check.Faults, h *corev1.HostPathVolumeSource, p *field.Path) {
	if !f.Need(p.Child("path"), h.Path) {
		return
	}
	NoBacksteps(f, h.Path, p.Child("path"))
	check.AmongPtr(f, p.Child("type"), h.Type, corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
		corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)
}

// NoBacksteps refuses a path with an element "..".
func NoBacksteps(f *check.Faults, path string, p *field.Path) {
	if hasBackstep(path) {
		f.Invalid(p, path, "must not contain '..'")
	}
}

// NFS wants a server and an absolute path.
func NFS(f *check.Faults, n *corev1.NFSVolumeSource, p *field.Path) {
	f.Need(p.Child("server"), n.Server)
	f.Need(p.Child("path"), n.Path)
	if !path.IsAbs(n.Path) {
		f.Invalid(p.Child("path"), n.Path, "must be an absolute path")
	}
}

func diskPartition(f *check.Faults, n int32, p *field.Path) {
	if n < 0 || n > 255 {
		f.Invalid(p.Child("partition"), n, validation.InclusiveRangeError(1, 255))
	}
}

func GCEPersistentDisk(f *check.Faults, d *corev1.GCEPersistentDiskVolumeSource, p *field.Path) {
	f.Need(p.Child("pdName"), d.PDName)
	diskPartition(f, d.Partition, p)
}

func AWSElasticBlockStore(f *check.Faults, d *corev1.AWSElasticBlockStoreVolumeSource, p *field.Path) {
	f.Need(p.Child("volumeID"), d.VolumeID)
	diskPartition(f, d.Partition, p)
}

func logicalUnit(f *check.Faults, n int32, shown any, p *field.Path) {
	if n < 0 || n > 255 {
		f.Invalid(p.Child("lun"), shown, validation.InclusiveRangeError(0, 255))
	}
}

// FC wants target names with a unit, or world wide identifiers.
func FC(f *check.Faults, c *corev1.FCVolumeSource, p *field.Path) {
	switch {
	case len(c.TargetWWNs) == 0 && len(c.WWIDs) == 0:
		f.Required(p.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both")
	case len(c.TargetWWNs) > 0 && len(c.WWIDs) > 0:
		f.Invalid(p.Child("targetWWNs"), c.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously")
	}
	switch {
	case len(c.TargetWWNs) == 0:
	case c.Lun == nil:
		f.Required(p.Child("lun"), "lun is required if targetWWNs is specified")
	default:
		logicalUnit(f, *c.Lun, c.Lun, p)
	}
}

// iscsiNames are the three forms of a name of an initiator or target (RFC 3721), by their first letters.
var iscsiNames = map[string]*regexp.Regexp{
	"iqn": regexp.MustCompile(`iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$`),
	"eui": regexp.MustCompile(`^eui.[[:alnum:]]{16}$`),
	"naa": regexp.MustCompile(`^naa.[[:alnum:]]{32}$`),
}

const (
	iscsiFormat    = "must be valid format"
	iscsiStarts    = " starting with iqn, eui, or naa"
	iscsiPortalMax = 64
	iscsiTooLong   = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified."
)

func iscsiName(f *check.Faults, name, badStart string, p *field.Path) {
	form, known := iscsiNames[name[:min(3, len(name))]]
	switch {
	case !known:
		f.Invalid(p, name, badStart)
	case !form.MatchString(name):
		f.Invalid(p, name, iscsiFormat)
	}
}

// ISCSI is what the two kinds of iSCSI sources share.
type ISCSI struct {
	Portal, IQN     string
	Lun             int32
	Auth, HasSecret bool // CHAP is on; there is a secret for it
	Initiator       *string
}

// Check reports the faults of a persistent volume's source. volume is its name.
func (i ISCSI) Check(f *check.Faults, volume string, p *field.Path) {
	if i.Initiator != nil && len(volume+":"+i.Portal) > iscsiPortalMax {
		f.Invalid(p.Child("targetportal"), i.Portal, iscsiTooLong)
	}
	i.check(f, iscsiFormat, p)
}

func (i ISCSI) check(f *check.Faults, badStart string, p *field.Path) {
	f.Need(p.Child("targetPortal"), i.Portal)
	if f.Need(p.Child("iqn"), i.IQN) {
		iscsiName(f, i.IQN, badStart, p.Child("iqn"))
	}
	logicalUnit(f, i.Lun, i.Lun, p)
	if i.Auth && !i.HasSecret {
		f.Required(p.Child("secretRef"), "")
	}
	if i.Initiator != nil {
		iscsiName(f, *i.Initiator, badStart, p.Child("initiatorname"))
	}
}

func localSecret(f *check.Faults, ref *corev1.LocalObjectReference, p *field.Path) {
	if ref != nil {
		f.Need(p.Child("secretRef", "name"), ref.Name)
	}
}

func Glusterfs(f *check.Faults, endpoints, path string, p *field.Path) {
	f.Need(p.Child("endpoints"), endpoints)
	f.Need(p.Child("path"), path)
}

func Flocker(f *check.Faults, v *corev1.FlockerVolumeSource, p *field.Path) {
	switch {
	case v.DatasetName == "" && v.DatasetUUID == "":
		f.Required(p, "one of datasetName and datasetUUID is required")
	case v.DatasetName != "" && v.DatasetUUID != "":
		f.Invalid(p, "resource", "datasetName and datasetUUID can not be specified simultaneously")
	}
	if strings.Contains(v.DatasetName, "/") {
		f.Invalid(p.Child("datasetName"), v.DatasetName, "must not contain '/'")
	}
}

func RBD(f *check.Faults, monitors []string, image string, p *field.Path) {
	CephFS(f, monitors, p)
	f.Need(p.Child("image"), image)
}

// CephFS wants a monitor.
func CephFS(f *check.Faults, monitors []string, p *field.Path) {
	if len(monitors) == 0 {
		f.Required(p.Child("monitors"), "")
	}
}

func Quobyte(f *check.Faults, q *corev1.QuobyteVolumeSource, p *field.Path) {
	const pair = "must be a host:port pair or multiple pairs separated by commas"
	switch {
	case q.Registry == "":
		f.Required(p.Child("registry"), pair)
	case len(q.Tenant) > 64:
		f.Required(p.Child("tenant"), "must be a UUID and may not exceed a length of 64 characters")
	default:
		for _, s := range strings.Split(q.Registry, ",") {
			if !hostPort(s) {
				f.Invalid(p.Child("registry"), q.Registry, pair)
			}
		}
	}
	f.Need(p.Child("volume"), q.Volume)
}

// hostPort reports whether s has the form host:port, with brackets around an IPv6 host.
func hostPort(s string) bool {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		host, port, ok := strings.Cut(inner, "]:")
		return ok && !strings.ContainsAny(host, "[]") && !strings.ContainsAny(port, "[]:")
	}
	return strings.Count(s, ":") == 1 && !strings.ContainsAny(s, "[]")
}

// FlexVolume: options in the names of Kubernetes are its own.
func FlexVolume(f *check.Faults, driver string, options map[string]string, p *field.Path) {
	f.Need(p.Child("driver"), driver)
	for k := range options {
		domain, _, _ := strings.Cut(k, "/")
		domain = "." + strings.ToLower(domain)
		if strings.HasSuffix(domain, ".kubernetes.io") || strings.HasSuffix(domain, ".k8s.io") {
			f.Invalid(p.Child("options").Key(k), k, "kubernetes.io and k8s.io namespaces are reserved")
		}
	}
}

func AzureFile(f *check.Faults, secret, share string, p *field.Path) {
	f.Need(p.Child("secretName"), secret)
	f.Need(p.Child("shareName"), share)
}

func AzureDisk(f *check.Faults, d *corev1.AzureDiskVolumeSource, p *field.Path) {
	f.Need(p.Child("diskName"), d.DiskName)
	f.Need(p.Child("diskURI"), d.DataDiskURI)
	check.AmongPtr(f, p.Child("cachingMode"), d.CachingMode, corev1.AzureDataDiskCachingNone, corev1.AzureDataDiskCachingReadOnly, corev1.AzureDataDiskCachingReadWrite)
	if d.Kind == nil {
		return
	}
	check.Among(f, p.Child("kind"), *d.Kind, corev1.AzureSharedBlobDisk, corev1.AzureDedicatedBlobDisk, corev1.AzureManagedDisk)
	start, form := "https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"
	if *d.Kind == corev1.AzureManagedDisk {
		start, form = "/subscriptions/", "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
	}
	if !strings.HasPrefix(d.DataDiskURI, start) {
		f.Add(field.ErrorList{field.NotSupported(p.Child("diskURI"), d.DataDiskURI, []string{form})})
	}
}

func StorageOS(f *check.Faults, name, namespace string, p *field.Path) {
	f.NeedName(p.Child("volumeName"), name, validation.IsDNS1123Label)
	if namespace != "" {
		f.Label(p.Child("volumeNamespace"), namespace)
	}
}

func ScaleIO(f *check.Faults, gateway, system, volume string, p *field.Path) {
	f.Need(p.Child("gateway"), gateway)
	f.Need(p.Child("system"), system)
	f.Need(p.Child("volumeName"), volume)
}
