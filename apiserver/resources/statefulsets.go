package resources

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

var statefulSetMain = Part[appsv1.StatefulSet]{
	Prepare: func(_ *Request, obj, old *appsv1.StatefulSet) {
		obj.Status = appsv1.StatefulSetStatus{}
		if old != nil {
			obj.Status = old.Status
		}
		// The gate MaxUnavailableStatefulSet is closed in 1.36.
		if u := obj.Spec.UpdateStrategy.RollingUpdate; u != nil && !unavailableSet(old) {
			u.MaxUnavailable = nil
		}
	},
	Validate: withoutRequest(validateStatefulSet),
	Warnings: func(_ *Request, s, _ *appsv1.StatefulSet) []string {
		var out []string
		for i := range s.Spec.VolumeClaimTemplates {
			out = append(out, podrules.ClaimWarnings(&s.Spec.VolumeClaimTemplates[i].Spec, field.NewPath("spec", "volumeClaimTemplates").Index(i))...)
		}
		if n := s.Spec.RevisionHistoryLimit; n != nil && *n < 0 {
			out = append(out, "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
		}
		return out
	},
	Reset: []string{"status"},
}

func unavailableSet(s *appsv1.StatefulSet) bool {
	return s != nil && s.Spec.UpdateStrategy.RollingUpdate != nil && s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable != nil
}

var statefulSets = Resource[appsv1.StatefulSet]{
	Group: "apps", Version: "v1", Kind: "StatefulSet", Plural: "statefulsets", Prefix: "statefulsets",
	Short: []string{"sts"}, Categories: []string{"all"}, Name: DNSLabel,
	List:    listOf[appsv1.StatefulSetList],
	Default: defaultStatefulSet, Restore: nameClaimKind,
	Main: templated(statefulSetMain, func(s *appsv1.StatefulSet) *corev1.PodTemplateSpec { return &s.Spec.Template }, "spec", "template"),
	Status: statusPart(func(s *appsv1.StatefulSet) *appsv1.StatefulSetSpec { return &s.Spec }, func(s, old *appsv1.StatefulSet) field.ErrorList {
		var f check.Faults
		p, st := field.NewPath("status"), &s.Status
		check.AtLeastZero(&f, p.Child("observedGeneration"), st.ObservedGeneration)
		counters(&f, p, "status.readyReplicas", st.Replicas, map[string]int32{
			"readyReplicas": st.ReadyReplicas, "currentReplicas": st.CurrentReplicas,
			"updatedReplicas": st.UpdatedReplicas, "availableReplicas": st.AvailableReplicas,
		})
		collisions(&f, st.CollisionCount, old.Status.CollisionCount, p)
		return f.List()
	}),
	Subs: []Sub{scaleSub},
	Docs: map[string]string{
		"Ready": "How many of the pods are ready.",
	},
	Columns: append([]Column[appsv1.StatefulSet]{
		text("Ready", func(s *appsv1.StatefulSet) string {
			return fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, replicasOf(s.Spec.Replicas))
		}),
		ageColumn[appsv1.StatefulSet](),
	}, podTemplateColumns(func(s *appsv1.StatefulSet) *corev1.PodSpec { return &s.Spec.Template.Spec })...),
}

func defaultStatefulSet(s *appsv1.StatefulSet) {
	podrules.DefaultTemplate(&s.Spec.Template)
	def(&s.Spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	u := &s.Spec.UpdateStrategy
	if u.Type == "" {
		u.Type = appsv1.RollingUpdateStatefulSetStrategyType
		defPtr(&u.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
	}
	if u.Type == appsv1.RollingUpdateStatefulSetStrategyType && u.RollingUpdate != nil {
		defPtr(&u.RollingUpdate.Partition, 0)
	}
	defPtr(&s.Spec.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	def(&s.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	def(&s.Spec.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	defPtr(&s.Spec.Replicas, 1)
	defPtr(&s.Spec.RevisionHistoryLimit, 10)
	for i := range s.Spec.VolumeClaimTemplates {
		defaultClaim(&s.Spec.VolumeClaimTemplates[i])
	}
	nameClaimKind(s)
}

// nameClaimKind says of each claim template that it is a claim, as clients are always shown.
func nameClaimKind(s *appsv1.StatefulSet) {
	for i := range s.Spec.VolumeClaimTemplates {
		c := &s.Spec.VolumeClaimTemplates[i]
		c.Kind, c.APIVersion = "PersistentVolumeClaim", "v1"
	}
}

func validateStatefulSet(set, old *appsv1.StatefulSet) field.ErrorList {
	var f check.Faults
	s, p := &set.Spec, field.NewPath("spec")
	switch s.PodManagementPolicy {
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	case "":
		f.Required(p.Child("podManagementPolicy"), "")
	default:
		f.Invalid(p.Child("podManagementPolicy"), s.PodManagementPolicy, "must be 'OrderedReady' or 'Parallel'")
	}
	switch u, at := s.UpdateStrategy, p.Child("updateStrategy"); u.Type {
	case "":
		f.Required(at, "")
	case appsv1.OnDeleteStatefulSetStrategyType:
		if u.RollingUpdate != nil {
			f.Invalid(at.Child("rollingUpdate"), check.Shown(u.RollingUpdate), fmt.Sprintf("only allowed for updateStrategy '%s'", appsv1.RollingUpdateStatefulSetStrategyType))
		}
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if u.RollingUpdate != nil {
			check.AtLeastZeroPtr(&f, at.Child("rollingUpdate", "partition"), u.RollingUpdate.Partition)
			if m := u.RollingUpdate.MaxUnavailable; m != nil {
				intOrPercent(&f, m, true, at.Child("rollingUpdate", "maxUnavailable"))
				if amount(m) == 0 {
					f.Invalid(at.Child("rollingUpdate", "maxUnavailable"), *m, "cannot be 0")
				}
			}
		}
	default:
		f.Invalid(at, check.Shown(u), fmt.Sprintf("must be '%s' or '%s'", appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType))
	}
	if r := s.PersistentVolumeClaimRetentionPolicy; r != nil {
		at := p.Child("persistentVolumeClaimRetentionPolicy")
		known := []appsv1.PersistentVolumeClaimRetentionPolicyType{appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType}
		check.Listed(&f, at.Child("whenDeleted"), r.WhenDeleted, known...)
		check.Listed(&f, at.Child("whenScaled"), r.WhenScaled, known...)
	}
	check.AtLeastZeroPtr(&f, p.Child("replicas"), s.Replicas)
	check.AtLeastZero(&f, p.Child("minReadySeconds"), s.MinReadySeconds)
	if s.Ordinals != nil {
		check.AtLeastZero(&f, p.Child("ordinals", "start"), s.Ordinals.Start)
	}
	if s.ServiceName != "" && old == nil {
		f.Each(p.Child("serviceName"), s.ServiceName, validation.IsDNS1123Label(s.ServiceName))
	}
	for i := range s.VolumeClaimTemplates {
		if old == nil {
			f.Add(podrules.ValidateClaimSpec(&s.VolumeClaimTemplates[i].Spec, p.Child("volumeClaimTemplates").Index(i).Child("spec"), nil))
		}
	}

	// The controller overwrites hostname and subdomain of the pods. Mounts may
	// name the volumes that the claim templates will become.
	template := s.Template.DeepCopy()
	template.Spec.Hostname, template.Spec.Subdomain = "", ""
	volumes := make([]corev1.Volume, 0, len(s.VolumeClaimTemplates)+len(template.Spec.Volumes))
	claims := check.Seen[string]{}
	for _, c := range s.VolumeClaimTemplates {
		if !claims.Again(c.Name) {
			volumes = append(volumes, corev1.Volume{Name: c.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name},
			}})
		}
	}
	for _, v := range template.Spec.Volumes {
		if !claims[v.Name] {
			volumes = append(volumes, v)
		}
	}
	template.Spec.Volumes = volumes
	validateWorkload(&f, s.Selector, template, "StatefulSet", "statefulset", p)
	if old == nil {
		at := p.Child("template")
		f.Labels(at.Child("labels"), s.Template.Labels)
		f.Add(apivalidation.ValidateAnnotations(s.Template.Annotations, at.Child("annotations")))
	}
	if old == nil {
		return f.List()
	}
	rest := s.DeepCopy()
	o := &old.Spec
	rest.Replicas, rest.Template, rest.UpdateStrategy = o.Replicas, o.Template, o.UpdateStrategy
	rest.MinReadySeconds, rest.Ordinals, rest.RevisionHistoryLimit = o.MinReadySeconds, o.Ordinals, o.RevisionHistoryLimit
	rest.PersistentVolumeClaimRetentionPolicy = o.PersistentVolumeClaimRetentionPolicy
	if !equality.Semantic.DeepEqual(*rest, *o) {
		f.Forbidden(p, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden")
	}
	return f.List()
}
