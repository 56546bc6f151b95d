package podrules

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

func isPrivileged(c *corev1.Container) bool {
	return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
}

// ValidatePrivilege refuses privileged containers where the cluster does not allow them.
func ValidatePrivilege(s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	eachContainer(s, p, func(c *corev1.Container, at *field.Path) {
		if isPrivileged(c) {
			f.Forbidden(at.Child("securityContext", "privileged"), "disallowed by cluster policy")
		}
	})
	return f.List()
}

func (r *specRules) validateSecurity(s *corev1.SecurityContext, p *field.Path) {
	if s == nil {
		return
	}
	r.user(s.RunAsUser, s.RunAsGroup, p)
	if s.ProcMount != nil {
		check.Listed(&r.Faults, p.Child("procMount"), *s.ProcMount, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
		if *s.ProcMount == corev1.UnmaskedProcMount && (r.spec.HostUsers == nil || *r.spec.HostUsers) {
			r.Invalid(p.Child("procMount"), *s.ProcMount, "`hostUsers` must be false to use `Unmasked`")
		}
	}
	r.seccomp(s.SeccompProfile, p.Child("seccompProfile"))
	if e := s.AllowPrivilegeEscalation; e != nil && !*e {
		if s.Privileged != nil && *s.Privileged {
			r.Invalid(p, check.Shown(s), "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
		}
		if s.Capabilities != nil {
			for _, c := range s.Capabilities.Add {
				if c == "CAP_SYS_ADMIN" {
					r.Invalid(p, check.Shown(s), "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
				}
			}
		}
	}
	r.windows(s.WindowsOptions, p.Child("windowsOptions"))
	r.appArmor(s.AppArmorProfile, p.Child("appArmorProfile"))
}

func (r *specRules) user(uid, gid *int64, p *field.Path) {
	if uid != nil {
		r.Each(p.Child("runAsUser"), *uid, validation.IsValidUserID(*uid))
	}
	if gid != nil {
		r.Each(p.Child("runAsGroup"), *gid, validation.IsValidGroupID(*gid))
	}
}

// sysctlName: dots or slashes between segments.
var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

const sysctlMax = 253

func (r *specRules) validatePodSecurity(p *field.Path) {
	s := r.spec.SecurityContext
	if s == nil {
		s = &corev1.PodSecurityContext{}
	}
	if s.FSGroup != nil {
		r.Each(p.Child("fsGroup"), *s.FSGroup, validation.IsValidGroupID(*s.FSGroup))
	}
	r.user(s.RunAsUser, s.RunAsGroup, p)
	for i, g := range s.SupplementalGroups {
		r.Each(p.Child("supplementalGroups").Index(i), g, validation.IsValidGroupID(g))
	}
	if share := r.spec.ShareProcessNamespace; share != nil && *share && r.spec.HostPID {
		r.Invalid(p.Child("shareProcessNamespace"), *share, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	r.validateSysctls(s.Sysctls, p.Child("sysctls"))
	check.AmongPtr(&r.Faults, p.Child("fsGroupChangePolicy"), s.FSGroupChangePolicy, corev1.FSGroupChangeOnRootMismatch, corev1.FSGroupChangeAlways)
	r.seccomp(s.SeccompProfile, p.Child("seccompProfile"))
	r.windows(s.WindowsOptions, p.Child("windowsOptions"))
	r.appArmor(s.AppArmorProfile, p.Child("appArmorProfile"))
	check.AmongPtr(&r.Faults, p.Child("supplementalGroupsPolicy"), s.SupplementalGroupsPolicy, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	// MountOption waits for the gate SELinuxMount, which is closed in 1.36.
	check.AmongPtr(&r.Faults, p.Child("seLinuxChangePolicy"), s.SELinuxChangePolicy, corev1.SELinuxChangePolicyRecursive)
}

func (r *specRules) validateSysctls(list []corev1.Sysctl, p *field.Path) {
	names := check.Seen[string]{}
	for i, c := range list {
		at := p.Index(i).Child("name")
		switch {
		case c.Name == "":
			r.Required(at, "")
		case len(c.Name) > sysctlMax || !sysctlName.MatchString(c.Name):
			r.Invalid(at, c.Name, fmt.Sprintf("must have at most %d characters and match regex %s", sysctlMax, sysctlName))
		case names.Again(c.Name):
			r.Duplicate(at, c.Name)
		}
		name := strings.ReplaceAll(c.Name, "/", ".")
		if r.spec.HostNetwork && strings.HasPrefix(name, "net.") {
			r.Invalid(at, c.Name, "may not be specified when 'hostNetwork' is true")
		}
		if r.spec.HostIPC && (strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")) {
			r.Invalid(at, c.Name, "may not be specified when 'hostIPC' is true")
		}
	}
}

func (r *specRules) seccomp(s *corev1.SeccompProfile, p *field.Path) {
	if s == nil {
		return
	}
	if s.Type == "" {
		r.Required(p.Child("type"), "type is required when seccompProfile is set")
	} else {
		check.Among(&r.Faults, p.Child("type"), s.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	}
	at := p.Child("localhostProfile")
	switch {
	case s.Type == corev1.SeccompProfileTypeLocalhost && s.LocalhostProfile == nil:
		r.Required(at, "must be set when seccomp type is Localhost")
	case s.Type == corev1.SeccompProfileTypeLocalhost:
		r.inside(*s.LocalhostProfile, at)
	case s.LocalhostProfile != nil:
		r.Invalid(at, check.Shown(s), "can only be set when seccomp type is Localhost")
	}
}

func (r *specRules) appArmor(a *corev1.AppArmorProfile, p *field.Path) {
	if a == nil {
		return
	}
	if a.Type == "" {
		r.Required(p.Child("type"), "type is required when appArmorProfile is set")
	} else {
		check.Among(&r.Faults, p.Child("type"), a.Type, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
	}
	at := p.Child("localhostProfile")
	switch {
	case (a.Type == corev1.AppArmorProfileTypeRuntimeDefault || a.Type == corev1.AppArmorProfileTypeUnconfined) && a.LocalhostProfile != nil:
		r.Invalid(at, *a.LocalhostProfile, "can only be set when AppArmor type is Localhost")
	case a.Type != corev1.AppArmorProfileTypeLocalhost:
	case a.LocalhostProfile == nil || strings.TrimSpace(*a.LocalhostProfile) == "":
		r.Required(at, "must be set when AppArmor type is Localhost")
	case strings.TrimSpace(*a.LocalhostProfile) != *a.LocalhostProfile:
		r.Invalid(at, *a.LocalhostProfile, "must not be padded with whitespace")
	case len(*a.LocalhostProfile) > 4095:
		r.TooLong(at, "", 4095)
	}
}

// validateOS refuses what the pod's operating system does not have.
func (r *specRules) validateOS(p *field.Path) {
	s := r.spec
	if s.OS.Name == corev1.Linux {
		if s.SecurityContext != nil && s.SecurityContext.WindowsOptions != nil {
			r.Forbidden(p.Child("securityContext", "windowsOptions"), "windows options cannot be set for a linux pod")
		}
		eachContainer(s, p, func(c *corev1.Container, at *field.Path) {
			if c.SecurityContext != nil && c.SecurityContext.WindowsOptions != nil {
				r.Forbidden(at.Child("securityContext", "windowsOptions"), "windows options cannot be set for a linux pod")
			}
		})
		return
	}
	if s.OS.Name != corev1.Windows {
		return
	}
	const refused = "cannot be set for a windows pod"
	c := s.SecurityContext
	if c == nil {
		c = &corev1.PodSecurityContext{}
	}
	at := p.Child("securityContext")
	r.refuse(at, refused, given{"appArmorProfile", c.AppArmorProfile != nil}, given{"seLinuxOptions", c.SELinuxOptions != nil})
	r.refuse(p, refused, given{"hostUsers", s.HostUsers != nil}, given{"hostPID", s.HostPID}, given{"hostIPC", s.HostIPC})
	r.refuse(at, refused, given{"seccompProfile", c.SeccompProfile != nil}, given{"fsGroup", c.FSGroup != nil},
		given{"fsGroupChangePolicy", c.FSGroupChangePolicy != nil}, given{"sysctls", len(c.Sysctls) > 0})
	r.refuse(p, refused, given{"shareProcessNamespace", s.ShareProcessNamespace != nil})
	r.refuse(at, refused, given{"runAsUser", c.RunAsUser != nil}, given{"runAsGroup", c.RunAsGroup != nil},
		given{"supplementalGroups", c.SupplementalGroups != nil}, given{"supplementalGroupsPolicy", c.SupplementalGroupsPolicy != nil},
		given{"seLinuxChangePolicy", c.SELinuxChangePolicy != nil})
	eachContainer(s, p, func(ctr *corev1.Container, at *field.Path) {
		c := ctr.SecurityContext
		if c == nil {
			return
		}
		r.refuse(at.Child("securityContext"), refused, given{"appArmorProfile", c.AppArmorProfile != nil}, given{"seLinuxOptions", c.SELinuxOptions != nil},
			given{"seccompProfile", c.SeccompProfile != nil}, given{"capabilities", c.Capabilities != nil},
			given{"readOnlyRootFilesystem", c.ReadOnlyRootFilesystem != nil}, given{"privileged", c.Privileged != nil},
			given{"allowPrivilegeEscalation", c.AllowPrivilegeEscalation != nil}, given{"procMount", c.ProcMount != nil},
			given{"runAsUser", c.RunAsUser != nil}, given{"runAsGroup", c.RunAsGroup != nil})
	})
}
