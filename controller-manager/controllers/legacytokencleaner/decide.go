package legacytokencleaner

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Labels of Secrets that hold a token. Their values are days of UTC: 2006-01-02.
//
// Source: Kubernetes documentation, "Well-Known Labels, Annotations and Taints".
const (
	lastUsed     = "kubernetes.io/legacy-token-last-used"
	invalidSince = "kubernetes.io/legacy-token-invalid-since"
)

// Step marks a token as out of use, or deletes it.
type Step struct {
	Secret *corev1.Secret
	Delete bool
	Since  string // the mark's value: today, or what was found when the token is deleted
}

func (s Step) String() string {
	if s.Delete {
		return fmt.Sprintf("delete secret %s/%s: its token is out of use since %s", s.Secret.Namespace, s.Secret.Name, s.Since)
	}
	return fmt.Sprintf("mark secret %s/%s: its token is not used", s.Secret.Namespace, s.Secret.Name)
}

// Decide lists what to do about tokens that nobody has used for the period. Whether a pod names the secret is
// not asked here: it has to be, before a step is taken.
//
// tracked is the day since which uses have been noted, so that a secret without a note may have been used before
// the day after it. account returns the service account of a name; nil when there is none.
func Decide(secrets []*corev1.Secret, account func(types.NamespacedName) *corev1.ServiceAccount, tracked time.Time, period time.Duration, now time.Time) []Step {
	now = now.UTC()
	limit := now.Add(-period)
	if limit.Before(tracked.AddDate(0, 0, 1)) {
		return nil
	}
	recent := func(day time.Time) bool { return !day.Before(limit.Truncate(24 * time.Hour)) }
	var steps []Step
	for _, s := range secrets {
		if s.Type != corev1.SecretTypeServiceAccountToken || s.DeletionTimestamp != nil || !s.CreationTimestamp.Time.Before(limit) {
			continue
		}
		if last, ok := s.Labels[lastUsed]; ok {
			// A note that cannot be read is no proof that the token is not used.
			if day, err := time.Parse(time.DateOnly, last); err != nil || recent(day) {
				continue
			}
		}
		if !generated(s, account) {
			continue
		}
		since, err := time.Parse(time.DateOnly, s.Labels[invalidSince])
		switch {
		case err != nil:
			steps = append(steps, Step{Secret: s, Since: now.Format(time.DateOnly)})
		case !recent(since):
			steps = append(steps, Step{Secret: s, Delete: true, Since: s.Labels[invalidSince]})
		}
	}
	return steps
}

// generated tells whether the cluster has made the secret by itself: then its account names it.
func generated(s *corev1.Secret, account func(types.NamespacedName) *corev1.ServiceAccount) bool {
	a := account(types.NamespacedName{Namespace: s.Namespace, Name: s.Annotations[corev1.ServiceAccountNameKey]})
	if uid := s.Annotations[corev1.ServiceAccountUIDKey]; a == nil || uid != "" && types.UID(uid) != a.UID {
		return false
	}
	for _, r := range a.Secrets {
		if r.Name == s.Name {
			return true
		}
	}
	return false
}

// named are the secrets that a pod names: to mount them, as environment, to pull images, to reach a volume.
func named(spec *corev1.PodSpec, yield func(name string)) {
	local := func(r *corev1.LocalObjectReference) {
		if r != nil {
			yield(r.Name)
		}
	}
	for i := range spec.ImagePullSecrets {
		local(&spec.ImagePullSecrets[i])
	}
	environment := func(env []corev1.EnvVar, from []corev1.EnvFromSource) {
		for i := range env {
			if f := env[i].ValueFrom; f != nil && f.SecretKeyRef != nil {
				local(&f.SecretKeyRef.LocalObjectReference)
			}
		}
		for i := range from {
			if s := from[i].SecretRef; s != nil {
				local(&s.LocalObjectReference)
			}
		}
	}
	for i := range spec.InitContainers {
		environment(spec.InitContainers[i].Env, spec.InitContainers[i].EnvFrom)
	}
	for i := range spec.Containers {
		environment(spec.Containers[i].Env, spec.Containers[i].EnvFrom)
	}
	for i := range spec.EphemeralContainers {
		environment(spec.EphemeralContainers[i].Env, spec.EphemeralContainers[i].EnvFrom)
	}
	for i := range spec.Volumes {
		switch v := &spec.Volumes[i].VolumeSource; {
		case v.Secret != nil:
			yield(v.Secret.SecretName)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					local(&s.Secret.LocalObjectReference)
				}
			}
		case v.AzureFile != nil:
			yield(v.AzureFile.SecretName)
		case v.CephFS != nil:
			local(v.CephFS.SecretRef)
		case v.CSI != nil:
			local(v.CSI.NodePublishSecretRef)
		case v.FlexVolume != nil:
			local(v.FlexVolume.SecretRef)
		case v.ISCSI != nil:
			local(v.ISCSI.SecretRef)
		case v.RBD != nil:
			local(v.RBD.SecretRef)
		case v.ScaleIO != nil:
			local(v.ScaleIO.SecretRef)
		case v.StorageOS != nil:
			local(v.StorageOS.SecretRef)
		}
	}
}
