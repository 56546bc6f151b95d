package audit

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"sigs.k8s.io/yaml"
)

// Policy is an audit.k8s.io/v1 Policy. It does not change.
type Policy struct{ p auditv1.Policy }

// Decision is what is recorded of a request.
type Decision struct {
	Level             auditv1.Level
	Omit              []auditv1.Stage
	OmitManagedFields bool
}

var (
	levels = []auditv1.Level{auditv1.LevelNone, auditv1.LevelMetadata, auditv1.LevelRequest, auditv1.LevelRequestResponse}
	stages = []auditv1.Stage{auditv1.StageRequestReceived, auditv1.StageResponseStarted, auditv1.StageResponseComplete, auditv1.StagePanic}
)

// ReadPolicy reads a policy file and reports every fault.
func ReadPolicy(text []byte) (*Policy, error) {
	p := &Policy{}
	if err := yaml.UnmarshalStrict(text, &p.p); err != nil {
		return nil, err
	}
	if p.p.Kind != "Policy" || p.p.APIVersion != "audit.k8s.io/v1" {
		return nil, fmt.Errorf("is %s %s, not audit.k8s.io/v1 Policy", p.p.APIVersion, p.p.Kind)
	}
	if len(p.p.Rules) == 0 {
		return nil, errors.New("has no rules")
	}
	errs := checkStages(field.NewPath("omitStages"), p.p.OmitStages)
	for i := range p.p.Rules {
		r, at := &p.p.Rules[i], field.NewPath("rules").Index(i)
		if !slices.Contains(levels, r.Level) {
			errs = append(errs, field.NotSupported(at.Child("level"), r.Level, levels))
		}
		errs = append(errs, checkStages(at.Child("omitStages"), r.OmitStages)...)
		if len(r.NonResourceURLs) > 0 && (len(r.Resources) > 0 || len(r.Namespaces) > 0) {
			errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
		}
		for j, u := range r.NonResourceURLs {
			switch {
			case u == "*":
			case !strings.HasPrefix(u, "/"):
				errs = append(errs, field.Invalid(at.Child("nonResourceURLs").Index(j), u, "non-resource URL rules must begin with a '/' character"))
			case strings.Contains(u[:len(u)-1], "*"):
				errs = append(errs, field.Invalid(at.Child("nonResourceURLs").Index(j), u, "non-resource URL wildcards '*' must be the final character of the rule"))
			}
		}
		for j, g := range r.Resources {
			if len(g.ResourceNames) > 0 && len(g.Resources) == 0 {
				errs = append(errs, field.Invalid(at.Child("resources").Index(j).Child("resourceNames"), g.ResourceNames, "using resourceNames requires at least one resource"))
			}
		}
		// Stages that the whole policy omits are omitted by every rule.
		r.OmitStages = append(r.OmitStages, p.p.OmitStages...)
	}
	if len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	return p, nil
}

func checkStages(at *field.Path, list []auditv1.Stage) (errs field.ErrorList) {
	for i, s := range list {
		if !slices.Contains(stages, s) {
			errs = append(errs, field.NotSupported(at.Index(i), s, stages))
		}
	}
	return errs
}

// Decide is the first rule that fits; without one nothing is recorded.
func (p *Policy) Decide(s Subject) Decision {
	for i := range p.p.Rules {
		r := &p.p.Rules[i]
		if !fits(r, s) {
			continue
		}
		d := Decision{Level: r.Level, Omit: r.OmitStages, OmitManagedFields: p.p.OmitManagedFields}
		if r.OmitManagedFields != nil {
			d.OmitManagedFields = *r.OmitManagedFields
		}
		return d
	}
	return Decision{Level: auditv1.LevelNone}
}

func fits(r *auditv1.PolicyRule, s Subject) bool {
	if len(r.Users) > 0 && (s.User == nil || !slices.Contains(r.Users, s.User.Name)) {
		return false
	}
	if len(r.UserGroups) > 0 && (s.User == nil || !slices.ContainsFunc(s.User.Groups, func(g string) bool { return slices.Contains(r.UserGroups, g) })) {
		return false
	}
	if len(r.Verbs) > 0 && !slices.Contains(r.Verbs, s.Verb) {
		return false
	}
	switch {
	case len(r.Namespaces) > 0 || len(r.Resources) > 0:
		if !s.Resource || len(r.Namespaces) > 0 && !slices.Contains(r.Namespaces, s.Namespace) {
			return false
		}
		return len(r.Resources) == 0 || slices.ContainsFunc(r.Resources, func(g auditv1.GroupResources) bool { return about(g, s) })
	case len(r.NonResourceURLs) > 0:
		return !s.Resource && slices.ContainsFunc(r.NonResourceURLs, func(u string) bool {
			return u == s.Path || strings.HasSuffix(u, "*") && strings.HasPrefix(s.Path, u[:len(u)-1])
		})
	}
	return true
}

// about: "pods" is without subresources, "pods/log" one of them, "pods/*" and "*/log" many, "*" all.
func about(g auditv1.GroupResources, s Subject) bool {
	if g.Group != s.Group && g.Group != "*" {
		return false
	}
	if len(g.Resources) == 0 {
		return true
	}
	if len(g.ResourceNames) > 0 && !slices.Contains(g.ResourceNames, s.Name) {
		return false
	}
	full := s.Plural
	if s.Subresource != "" {
		full += "/" + s.Subresource
	}
	return slices.ContainsFunc(g.Resources, func(r string) bool {
		return r == "*" || r == full || r == s.Plural+"/*" || s.Subresource != "" && r == "*/"+s.Subresource
	})
}
