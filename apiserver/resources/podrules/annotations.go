package podrules

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

const (
	seccompPod       = "seccomp.security.alpha.kubernetes.io/pod"
	seccompContainer = "container.seccomp.security.alpha.kubernetes.io/"
	appArmorIsAField = `deprecated since v1.30; use the "appArmorProfile" field instead`
)

// validateAnnotations checks the annotations that change what a pod does, or did before they became fields.
func validateAnnotations(annotations map[string]string, s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	if v, ok := annotations[corev1.MirrorPodAnnotationKey]; ok && s.NodeName == "" {
		f.Invalid(p.Key(corev1.MirrorPodAnnotationKey), v, "must set spec.nodeName if mirror pod annotation is set")
	}
	if v := annotations[corev1.TolerationsAnnotationKey]; v != "" {
		var tolerations []corev1.Toleration
		if err := json.Unmarshal([]byte(v), &tolerations); err != nil {
			f.Invalid(p, corev1.TolerationsAnnotationKey, err.Error())
		} else {
			f.Add(ValidateTolerations(tolerations, p.Child(corev1.TolerationsAnnotationKey)))
		}
	}
	if v, ok := annotations[corev1.PodDeletionCost]; ok && !isInt32(v) {
		f.Invalid(p.Key(corev1.PodDeletionCost), v, "must be a 32bit integer")
	}
	f.Add(validateSeccompAnnotations(annotations, p))
	f.Add(validateAppArmorAnnotations(annotations, s, p))
	return f.List()
}

// isInt32: one way to write each number.
func isInt32(s string) bool {
	_, err := strconv.ParseInt(s, 10, 32)
	return err == nil && s[0] != '+' && (len(s) == 1 || s[0] != '0')
}

func validateSeccompAnnotations(annotations map[string]string, p *field.Path) field.ErrorList {
	r := &specRules{}
	one := func(v string, at *field.Path) {
		local, ok := strings.CutPrefix(v, corev1.SeccompLocalhostProfileNamePrefix)
		switch {
		case v == corev1.SeccompProfileRuntimeDefault, v == corev1.DeprecatedSeccompProfileDockerDefault, v == corev1.SeccompProfileNameUnconfined:
		case ok:
			r.inside(local, at)
		default:
			r.Invalid(at, v, "must be a valid seccomp profile")
		}
	}
	if v, ok := annotations[seccompPod]; ok {
		one(v, p.Child(seccompPod))
	}
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		if strings.HasPrefix(k, seccompContainer) {
			one(annotations[k], p.Child(k))
		}
	}
	return r.List()
}

func validateAppArmorAnnotations(annotations map[string]string, s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	names := map[string]bool{}
	eachContainer(s, nil, func(c *corev1.Container, _ *field.Path) { names[c.Name] = true })
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		name, ok := strings.CutPrefix(k, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix)
		if !ok {
			continue
		}
		if !names[name] {
			f.Invalid(p.Key(k), name, "container not found")
		}
		v := annotations[k]
		if v != "" && v != corev1.DeprecatedAppArmorBetaProfileRuntimeDefault && v != corev1.DeprecatedAppArmorBetaProfileNameUnconfined &&
			!strings.HasPrefix(v, corev1.DeprecatedAppArmorBetaProfileNamePrefix) {
			f.Invalid(p.Key(k), v, fmt.Sprintf("invalid AppArmor profile name: %q", v))
		}
	}
	return f.List()
}

// matchProfiles: on creation, an annotation and the field that took its place may not disagree; p leads to the spec.
func matchProfiles(annotations map[string]string, s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Add(matchSeccomp(annotations, s, p))
	f.Add(matchAppArmor(annotations, s, p))
	return f.List()
}

func matchSeccomp(annotations map[string]string, s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	one := func(key string, profile *corev1.SeccompProfile, p *field.Path) {
		v, ok := annotations[key]
		if !ok || profile == nil {
			return
		}
		local, isLocal := strings.CutPrefix(v, corev1.SeccompLocalhostProfileNamePrefix)
		same := true
		switch profile.Type {
		case corev1.SeccompProfileTypeUnconfined:
			same = v == corev1.SeccompProfileNameUnconfined
		case corev1.SeccompProfileTypeRuntimeDefault:
			same = v == corev1.SeccompProfileRuntimeDefault || v == corev1.DeprecatedSeccompProfileDockerDefault
		case corev1.SeccompProfileTypeLocalhost:
			same = isLocal
			if isLocal && (profile.LocalhostProfile == nil || *profile.LocalhostProfile != local) {
				f.Forbidden(p.Child("localhostProfile"), "seccomp profile in annotation and field must match")
			}
		}
		if !same {
			f.Forbidden(p.Child("type"), "seccomp type in annotation and field must match")
		}
	}
	if s.SecurityContext != nil {
		one(seccompPod, s.SecurityContext.SeccompProfile, p.Child("securityContext", "seccompProfile"))
	}
	eachContainer(s, p, func(c *corev1.Container, p *field.Path) {
		if c.SecurityContext != nil {
			one(seccompContainer+c.Name, c.SecurityContext.SeccompProfile, p.Child("securityContext", "seccompProfile"))
		}
	})
	return f.List()
}

func matchAppArmor(annotations map[string]string, s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var f check.Faults
	if s.OS != nil && s.OS.Name == corev1.Windows {
		return nil
	}
	eachContainer(s, p, func(c *corev1.Container, p *field.Path) {
		profile := podAppArmor(s)
		if c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
			profile = c.SecurityContext.AppArmorProfile
		}
		v, ok := annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]
		if !ok || profile == nil {
			return
		}
		at := p.Child("securityContext", "appArmorProfile")
		kind := map[corev1.AppArmorProfileType]string{
			corev1.AppArmorProfileTypeUnconfined: corev1.DeprecatedAppArmorBetaProfileNameUnconfined, corev1.AppArmorProfileTypeRuntimeDefault: corev1.DeprecatedAppArmorBetaProfileRuntimeDefault,
		}[profile.Type]
		local, isLocal := strings.CutPrefix(v, corev1.DeprecatedAppArmorBetaProfileNamePrefix)
		switch {
		case profile.Type != corev1.AppArmorProfileTypeLocalhost && kind != v, profile.Type == corev1.AppArmorProfileTypeLocalhost && !isLocal:
			f.Forbidden(at.Child("type"), "apparmor type in annotation and field must match")
		case isLocal && (profile.LocalhostProfile == nil || *profile.LocalhostProfile != local):
			f.Forbidden(at.Child("localhostProfile"), "apparmor profile in annotation and field must match")
		}
	})
	return f.List()
}

func podAppArmor(s *corev1.PodSpec) *corev1.AppArmorProfile {
	if s.SecurityContext == nil {
		return nil
	}
	return s.SecurityContext.AppArmorProfile
}

// annotatedAppArmor is the profile that the old annotation means, nil when it means none.
func annotatedAppArmor(v string) *corev1.AppArmorProfile {
	switch v {
	case corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	case corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	}
	if local, ok := strings.CutPrefix(v, corev1.DeprecatedAppArmorBetaProfileNamePrefix); ok && local != "" {
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &local}
	}
	return nil
}

func sameProfile(a, b *corev1.AppArmorProfile) bool {
	return a != nil && equality.Semantic.DeepEqual(a, b)
}

// AdoptAppArmor moves profiles of annotations into the fields of a new pod's
// containers, and warns of each annotation that was needed or means nothing.
func AdoptAppArmor(pod *corev1.Pod, warn func(string)) {
	if pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows {
		return
	}
	eachContainer(&pod.Spec, nil, func(c *corev1.Container, _ *field.Path) {
		key := corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + c.Name
		v, ok := pod.Annotations[key]
		if !ok || c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
			return
		}
		profile := annotatedAppArmor(v)
		rules := &specRules{}
		if rules.appArmor(profile, field.NewPath("")); !rules.Empty() {
			profile = nil
		}
		if profile != nil {
			if equality.Semantic.DeepEqual(profile, podAppArmor(&pod.Spec)) {
				return
			}
			if c.SecurityContext == nil {
				c.SecurityContext = &corev1.SecurityContext{}
			}
			c.SecurityContext.AppArmorProfile = profile
		}
		warn(field.NewPath("metadata", "annotations").Key(key).String() + ": " + appArmorIsAField)
	})
}
