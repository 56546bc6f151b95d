package admission

import (
	"context"
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/apiserver/resources"
)

const (
	tokenMountPath  = "/var/run/secrets/kubernetes.io/serviceaccount"
	tokenLifeSecond = 3607
	rootCAConfigMap = "kube-root-ca.crt"
)

// serviceAccount gives each pod an account, and the token volume that goes with
// it, and refuses pods of accounts that do not exist.
//
// Source: Kubernetes documentation, "Managing Service Accounts".
func serviceAccount(cfg Config) Plugin {
	find := func(a *Attributes, pod *corev1.Pod) (*corev1.ServiceAccount, error) {
		sa, err := resources.Lookup[corev1.ServiceAccount](cfg.Read, grServiceAccounts, a.Namespace, pod.Spec.ServiceAccountName)
		if err != nil {
			return nil, err
		}
		if sa == nil {
			return nil, forbid(a, fmt.Errorf("error looking up service account %s/%s: %w", a.Namespace, pod.Spec.ServiceAccountName,
				apierrors.NewNotFound(corev1.Resource("serviceaccount"), pod.Spec.ServiceAccountName)))
		}
		return sa, nil
	}
	return Plugin{
		Name: "ServiceAccount",
		Mutate: func(_ context.Context, a *Attributes) error {
			pod := a.pod()
			if pod == nil || a.Operation != Create {
				return nil
			}
			if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
				return mirrorHasNoAccount(a, pod)
			}
			if pod.Spec.ServiceAccountName == "" {
				pod.Spec.ServiceAccountName = "default"
				if pod.Spec.DeprecatedServiceAccount != "" {
					pod.Spec.ServiceAccountName = pod.Spec.DeprecatedServiceAccount
				}
			}
			pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
			sa, err := find(a, pod)
			if err != nil {
				return err
			}
			if wantsToken(sa, pod) {
				mountToken(pod)
			}
			if len(pod.Spec.ImagePullSecrets) == 0 {
				pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, sa.ImagePullSecrets...)
			}
			return nil
		},
		Validate: func(_ context.Context, a *Attributes) (func(), error) {
			pod := a.pod()
			if pod == nil || a.Operation != Create {
				return nil, nil
			}
			if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
				return nil, mirrorHasNoAccount(a, pod)
			}
			sa, err := find(a, pod)
			if err == nil && sa.Annotations["kubernetes.io/enforce-mountable-secrets"] == "true" {
				err = onlyMountable(a, sa, pod)
			}
			return nil, err
		},
	}
}

func mirrorHasNoAccount(a *Attributes, pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return forbid(a, fmt.Errorf("a mirror pod may not reference service accounts"))
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Secret != nil || v.Projected != nil && projectsToken(v.Projected) {
			return forbid(a, fmt.Errorf("a mirror pod may not reference secrets or service account tokens"))
		}
	}
	return nil
}

func projectsToken(p *corev1.ProjectedVolumeSource) bool {
	for _, s := range p.Sources {
		if s.ServiceAccountToken != nil {
			return true
		}
	}
	return false
}

// wantsToken: the pod's word counts before the account's; the default is yes.
func wantsToken(sa *corev1.ServiceAccount, pod *corev1.Pod) bool {
	if pod.Spec.AutomountServiceAccountToken != nil {
		return *pod.Spec.AutomountServiceAccountToken
	}
	return sa.AutomountServiceAccountToken == nil || *sa.AutomountServiceAccountToken
}

// mountToken adds the projected volume to every container that has nothing mounted there.
func mountToken(pod *corev1.Pod) {
	name := ""
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if len(v.Name) > len("kube-api-access-") && v.Name[:len("kube-api-access-")] == "kube-api-access-" {
			name = v.Name
		}
	}
	fresh := name == ""
	if fresh {
		name = "kube-api-access-" + rand.String(5)
	}
	mount := corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenMountPath}
	used := false
	add := func(list []corev1.Container) {
		for i := range list {
			taken := false
			for _, m := range list[i].VolumeMounts {
				taken = taken || path.Clean(m.MountPath) == tokenMountPath
			}
			if !taken {
				list[i].VolumeMounts = append(list[i].VolumeMounts, mount)
				used = true
			}
		}
	}
	add(pod.Spec.InitContainers)
	add(pod.Spec.Containers)
	if used && fresh {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: tokenVolume()})
	}
}

func tokenVolume() corev1.VolumeSource {
	return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: ptr.To(corev1.ProjectedVolumeSourceDefaultMode),
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To(int64(tokenLifeSecond))}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: rootCAConfigMap},
				Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
				Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
			}}}},
		},
	}}
}

// onlyMountable refuses secrets that the account does not list.
func onlyMountable(a *Attributes, sa *corev1.ServiceAccount, pod *corev1.Pod) error {
	listed := map[string]bool{}
	for _, s := range sa.Secrets {
		listed[s.Name] = true
	}
	for i := range pod.Spec.Volumes {
		if s := pod.Spec.Volumes[i].Secret; s != nil && !listed[s.SecretName] {
			return forbid(a, fmt.Errorf("volume with secret.secretName=%q is not allowed because service account %s does not reference that secret", s.SecretName, sa.Name))
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			for _, e := range c.Env {
				if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && !listed[e.ValueFrom.SecretKeyRef.Name] {
					return forbid(a, fmt.Errorf("container %s with envVar %s referencing secret.secretName=%q is not allowed because service account %s does not reference that secret",
						c.Name, e.Name, e.ValueFrom.SecretKeyRef.Name, sa.Name))
				}
			}
		}
	}
	return nil
}
