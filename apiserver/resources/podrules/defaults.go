package podrules

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func setPtr[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

// DefaultPod fills what a Pod lacks, and no PodTemplate gets: requests from
// limits, service links, host ports.
func DefaultPod(p *corev1.Pod) {
	DefaultSpec(&p.Spec)
	if *p.Spec.TerminationGracePeriodSeconds < 0 {
		*p.Spec.TerminationGracePeriodSeconds = 1
	}
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			r := &list[i].Resources
			if r.Limits != nil && r.Requests == nil {
				r.Requests = corev1.ResourceList{}
			}
			for name, q := range r.Limits {
				if _, ok := r.Requests[name]; !ok {
					r.Requests[name] = q.DeepCopy()
				}
			}
			if p.Spec.HostNetwork {
				for j := range list[i].Ports {
					set(&list[i].Ports[j].HostPort, list[i].Ports[j].ContainerPort)
				}
			}
		}
	}
	defaultPodResources(p)
	setPtr(&p.Spec.EnableServiceLinks, true)
	// podIP is the old name of the first of podIPs: whoever writes it alone is believed.
	s := &p.Status
	if s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP) {
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
}

// defaultPodResources derives pod-level requests where only limits are given (KEP-2837):
// from the containers' requests where there are any, else from the pod's limits.
func defaultPodResources(p *corev1.Pod) {
	r := p.Spec.Resources
	if r == nil || len(r.Limits) == 0 && len(r.Requests) == 0 {
		return
	}
	put := func(list *corev1.ResourceList, from corev1.ResourceList, want func(corev1.ResourceName) bool) {
		for name, q := range from {
			if _, ok := (*list)[name]; ok || !resourcehelper.IsSupportedPodLevelResource(name) || !want(name) {
				continue
			}
			if *list == nil {
				*list = corev1.ResourceList{}
			}
			(*list)[name] = q.DeepCopy()
		}
	}
	put(&r.Limits, resourcehelper.AggregateContainerLimits(p, resourcehelper.PodResourcesOptions{}), func(n corev1.ResourceName) bool {
		_, asked := r.Requests[n]
		return isHugePage(n) && !asked
	})
	if len(r.Limits) == 0 {
		return
	}
	put(&r.Requests, resourcehelper.AggregateContainerRequests(p, resourcehelper.PodResourcesOptions{}), func(n corev1.ResourceName) bool { return !isHugePage(n) })
	put(&r.Requests, r.Limits, func(corev1.ResourceName) bool { return true })
}

// DefaultTemplate fills the pod template of a workload.
func DefaultTemplate(t *corev1.PodTemplateSpec) { DefaultSpec(&t.Spec) }

// DefaultSpec fills what every pod spec gets, alone or in a template.
func DefaultSpec(s *corev1.PodSpec) {
	set(&s.DNSPolicy, corev1.DNSClusterFirst)
	set(&s.RestartPolicy, corev1.RestartPolicyAlways)
	setPtr(&s.SecurityContext, corev1.PodSecurityContext{})
	setPtr(&s.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	RoundUp(s.Overhead)
	if s.Resources != nil {
		RoundUp(s.Resources.Limits)
		RoundUp(s.Resources.Requests)
	}
	set(&s.SchedulerName, corev1.DefaultSchedulerName)
	// serviceAccount is the old name of serviceAccountName and always agrees with it.
	set(&s.ServiceAccountName, s.DeprecatedServiceAccount)
	s.DeprecatedServiceAccount = s.ServiceAccountName
	for i := range s.Volumes {
		DefaultVolume(&s.Volumes[i])
	}
	for i := range s.InitContainers {
		DefaultContainer(&s.InitContainers[i])
	}
	for i := range s.Containers {
		DefaultContainer(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		DefaultContainer((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon))
	}
}

// DefaultVolume fills a volume: an empty one is an emptyDir.
func DefaultVolume(v *corev1.Volume) {
	if v.VolumeSource == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	const mode = int32(0o644)
	if v.Secret != nil {
		setPtr(&v.Secret.DefaultMode, mode)
	}
	if v.ConfigMap != nil {
		setPtr(&v.ConfigMap.DefaultMode, mode)
	}
	if v.HostPath != nil {
		setPtr(&v.HostPath.Type, corev1.HostPathUnset)
	}
	if v.DownwardAPI != nil {
		setPtr(&v.DownwardAPI.DefaultMode, mode)
		for i := range v.DownwardAPI.Items {
			defaultFieldRef(v.DownwardAPI.Items[i].FieldRef)
		}
	}
	if v.Projected != nil {
		setPtr(&v.Projected.DefaultMode, mode)
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil {
				setPtr(&s.ServiceAccountToken.ExpirationSeconds, 3600)
			}
			if s.PodCertificate != nil {
				setPtr(&s.PodCertificate.MaxExpirationSeconds, 86400)
			}
			if s.DownwardAPI != nil {
				for i := range s.DownwardAPI.Items {
					defaultFieldRef(s.DownwardAPI.Items[i].FieldRef)
				}
			}
		}
	}
	if v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
		setPtr(&v.Ephemeral.VolumeClaimTemplate.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	}
	if v.ISCSI != nil {
		set(&v.ISCSI.ISCSIInterface, "default")
	}
	if v.RBD != nil {
		set(&v.RBD.RBDPool, "rbd")
		set(&v.RBD.RadosUser, "admin")
		set(&v.RBD.Keyring, "/etc/ceph/keyring")
	}
	if v.AzureDisk != nil {
		setPtr(&v.AzureDisk.CachingMode, corev1.AzureDataDiskCachingReadWrite)
		setPtr(&v.AzureDisk.FSType, "ext4")
		setPtr(&v.AzureDisk.ReadOnly, false)
		setPtr(&v.AzureDisk.Kind, corev1.AzureSharedBlobDisk)
	}
	if v.ScaleIO != nil {
		set(&v.ScaleIO.StorageMode, "ThinProvisioned")
		set(&v.ScaleIO.FSType, "xfs")
	}
	if v.Image != nil {
		set(&v.Image.PullPolicy, pullPolicy(v.Image.Reference))
	}
}

func defaultFieldRef(r *corev1.ObjectFieldSelector) {
	if r != nil {
		set(&r.APIVersion, "v1")
	}
}

// imageName is a reference that can be pulled: a lower-case path, perhaps behind a host, tag and digest apart.
// Source: the grammar of the OCI distribution specification.
var imageName = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]+)?/)?[a-z0-9]+(([._]|__|-+|/)[a-z0-9]+)*$`)

// imageID is no name, though it looks like one.
var imageID = regexp.MustCompile(`^[a-f0-9]{64}$`)

// pullPolicy is Always for the tag "latest", written or meant.
func pullPolicy(image string) corev1.PullPolicy {
	name, _, digest := strings.Cut(image, "@")
	tag := ""
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
	}
	if len(name) <= 255 && imageName.MatchString(name) && !imageID.MatchString(image) && (tag == "latest" || tag == "" && !digest) {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// DefaultContainer fills one container of any of the three lists.
func DefaultContainer(c *corev1.Container) {
	set(&c.ImagePullPolicy, pullPolicy(c.Image))
	set(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	set(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		set(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil {
			defaultFieldRef(from.FieldRef)
			if from.FileKeyRef != nil {
				setPtr(&from.FileKeyRef.Optional, false)
			}
		}
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p == nil {
			continue
		}
		set(&p.TimeoutSeconds, 1)
		set(&p.PeriodSeconds, 10)
		set(&p.SuccessThreshold, 1)
		set(&p.FailureThreshold, 3)
		defaultHTTP(p.HTTPGet)
		if p.GRPC != nil {
			setPtr(&p.GRPC.Service, "")
		}
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				defaultHTTP(h.HTTPGet)
			}
		}
	}
	RoundUp(c.Resources.Limits)
	RoundUp(c.Resources.Requests)
}

func defaultHTTP(h *corev1.HTTPGetAction) {
	if h == nil {
		return
	}
	set(&h.Path, "/")
	set(&h.Scheme, corev1.URISchemeHTTP)
}

// RoundUp keeps quantities at the finest scale that the API stores, a thousandth.
func RoundUp(l corev1.ResourceList) {
	for name, q := range l {
		q.RoundUp(-3)
		l[name] = q
	}
}
