package resources

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

var flowSchemas = Resource[flowcontrolv1.FlowSchema]{
	Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "FlowSchema", Plural: "flowschemas", WholeMeta: true, Prefix: "flowschemas", Scope: Cluster,
	List:    listOf[flowcontrolv1.FlowSchemaList],
	Default: func(s *flowcontrolv1.FlowSchema) { def(&s.Spec.MatchingPrecedence, 1000) },
	Main:    mainPart(func(s *flowcontrolv1.FlowSchema) *flowcontrolv1.FlowSchemaStatus { return &s.Status }, validateFlowSchema),
	Status: keepMeta(statusPart(func(s *flowcontrolv1.FlowSchema) *flowcontrolv1.FlowSchemaSpec { return &s.Spec }, func(s, _ *flowcontrolv1.FlowSchema) field.ErrorList {
		var f check.Faults
		types := check.Seen[string]{}
		for i, c := range s.Status.Conditions {
			conditionType(&f, types, string(c.Type), i)
		}
		return f.List()
	})),
	Docs: map[string]string{
		"PriorityLevel":       flowcontrolv1.PriorityLevelConfigurationReference{}.SwaggerDoc()["name"],
		"MatchingPrecedence":  flowcontrolv1.FlowSchemaSpec{}.SwaggerDoc()["matchingPrecedence"],
		"DistinguisherMethod": flowcontrolv1.FlowSchemaSpec{}.SwaggerDoc()["distinguisherMethod"],
		"MissingPL":           "Whether its priority level is missing.",
	},
	// The order in which they are asked whether a request is theirs.
	Order: func(a, b *flowcontrolv1.FlowSchema) int {
		return cmp.Or(cmp.Compare(a.Spec.MatchingPrecedence, b.Spec.MatchingPrecedence), strings.Compare(a.Name, b.Name))
	},
	Columns: []Column[flowcontrolv1.FlowSchema]{
		text("PriorityLevel", func(s *flowcontrolv1.FlowSchema) string { return s.Spec.PriorityLevelConfiguration.Name }),
		counted("MatchingPrecedence", func(s *flowcontrolv1.FlowSchema) int32 { return s.Spec.MatchingPrecedence }),
		text("DistinguisherMethod", func(s *flowcontrolv1.FlowSchema) string {
			if s.Spec.DistinguisherMethod == nil {
				return "<none>"
			}
			return string(s.Spec.DistinguisherMethod.Type)
		}),
		ageColumn[flowcontrolv1.FlowSchema](),
		text("MissingPL", func(s *flowcontrolv1.FlowSchema) string {
			for _, c := range s.Status.Conditions {
				if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
					return string(c.Status)
				}
			}
			return "?"
		}),
	},
}

func conditionType(f *check.Faults, seen check.Seen[string], t string, i int) {
	p := field.NewPath("status", "conditions").Index(i).Child("type")
	if f.Need(p, t) && seen.Again(t) {
		f.Duplicate(p, t)
	}
}

// knownVerbs: all of them, unless "*" stands for them.
func knownVerbs(f *check.Faults, list []string, p *field.Path) {
	all := []string{"create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"}
	if slices.Contains(list, "*") {
		return
	}
	for _, v := range list {
		if !slices.Contains(all, v) {
			f.Add(field.ErrorList{field.NotSupported(p, list, all)})
			return
		}
	}
}

func validateQueuing(f *check.Faults, q *flowcontrolv1.QueuingConfiguration, p *field.Path) {
	const positive = "must be positive"
	if q.QueueLengthLimit <= 0 {
		f.Invalid(p.Child("queueLengthLimit"), q.QueueLengthLimit, positive)
	}
	switch at := p.Child("queues"); {
	case q.Queues <= 0:
		f.Invalid(at, q.Queues, positive)
	case q.Queues > 10_000_000:
		f.Invalid(at, q.Queues, "must not be greater than 10000000")
	}
	// A hand is dealt from one hash of 60 bits.
	switch at := p.Child("handSize"); {
	case q.HandSize <= 0:
		f.Invalid(at, q.HandSize, positive)
	case q.HandSize > q.Queues:
		f.Invalid(at, q.HandSize, "should not be greater than queues ("+decimal(q.Queues)+")")
	case math.Log2(float64(q.Queues))*float64(q.HandSize) > 60:
		f.Invalid(at, q.HandSize, fmt.Sprintf("required entropy bits of deckSize %d and handSize %d should not be greater than 60", q.Queues, q.HandSize))
	}
}

func validateFlowSchema(s, _ *flowcontrolv1.FlowSchema) field.ErrorList {
	var f check.Faults
	p := field.NewPath("spec")
	at := p.Child("matchingPrecedence")
	switch n := s.Spec.MatchingPrecedence; {
	case n <= 0:
		f.Invalid(at, n, "must be a positive value")
	case n > 10000:
		f.Invalid(at, n, "must not be greater than 10000")
	case n == 1 && s.Name != "exempt":
		f.Invalid(at, n, "only the schema named 'exempt' may have matchingPrecedence 1")
	}
	if d := s.Spec.DistinguisherMethod; d != nil {
		if t := d.Type; t != flowcontrolv1.FlowDistinguisherMethodByNamespaceType && t != flowcontrolv1.FlowDistinguisherMethodByUserType {
			shown := struct {
				Type flowcontrolv1.FlowDistinguisherMethodType
			}{t} // upstream shows the whole method
			f.Add(field.ErrorList{field.NotSupported(p.Child("distinguisherMethod", "type"), shown,
				[]flowcontrolv1.FlowDistinguisherMethodType{flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType})})
		}
	}
	if n := s.Spec.PriorityLevelConfiguration.Name; n == "" {
		f.Required(p.Child("priorityLevelConfiguration", "name"), "must reference a priority level")
	} else {
		f.Subdomain(p.Child("priorityLevelConfiguration", "name"), n)
	}
	for i, r := range s.Spec.Rules {
		at := p.Child("rules").Index(i)
		if len(r.Subjects) == 0 {
			f.Required(at.Child("subjects"), "subjects must contain at least one value")
		}
		if len(r.ResourceRules)+len(r.NonResourceRules) == 0 {
			f.Required(at, "at least one of resourceRules and nonResourceRules has to be non-empty")
		}
		for j, sub := range r.Subjects {
			validateFlowSubject(&f, sub, at.Child("subjects").Index(j))
		}
		for j, x := range r.ResourceRules {
			at := at.Child("resourceRules").Index(j)
			wildcard(&f, x.Verbs, "verbs", "verbs must contain at least one value", at.Child("verbs"))
			knownVerbs(&f, x.Verbs, at.Child("verbs"))
			wildcard(&f, x.APIGroups, "api groups", "resource rules must supply at least one api group", at.Child("apiGroups"))
			wildcard(&f, x.Resources, "resources", "resource rules must supply at least one resource", at.Child("resources"))
			if !x.ClusterScope || len(x.Namespaces) > 0 {
				wildcard(&f, x.Namespaces, "namespaces", "resource rules that are not cluster scoped must supply at least one namespace", at.Child("namespaces"))
			}
			for k, n := range x.Namespaces {
				if n != "*" {
					for _, msg := range validation.IsDNS1123Label(n) {
						f.Invalid(at.Child("namespaces").Index(k), n, "each member of this list must be '*' or a DNS-1123 label; "+msg)
					}
				}
			}
		}
		for j, x := range r.NonResourceRules {
			at := at.Child("nonResourceRules").Index(j)
			wildcard(&f, x.Verbs, "verbs", "verbs must contain at least one value", at.Child("verbs"))
			knownVerbs(&f, x.Verbs, at.Child("verbs"))
			wildcard(&f, x.NonResourceURLs, "non-resource URLs", "nonResourceURLs must contain at least one value", at.Child("nonResourceURLs"))
			for k, u := range x.NonResourceURLs {
				at := at.Child("nonResourceURLs").Index(k)
				switch {
				case u == "*":
				case u == "":
					f.Invalid(at, u, "must not be empty")
				case !strings.HasPrefix(u, "/"):
					f.Invalid(at, u, "must start with slash")
				case strings.ContainsAny(u, " \t\n\r"):
					f.Invalid(at, u, "must not contain white-space")
				case strings.Contains(u, "//"):
					f.Invalid(at, u, "must not contain double slash")
				case strings.Contains(strings.TrimSuffix(u, "/*"), "*"):
					f.Invalid(at, u, "wildcard can only do suffix matching")
				}
			}
		}
	}
	return f.List()
}

// wildcard: a list that is not empty, and "*" stands alone.
func wildcard(f *check.Faults, list []string, what, missing string, p *field.Path) {
	if len(list) == 0 {
		f.Required(p, missing)
	}
	if len(list) > 1 && slices.Contains(list, "*") {
		f.Invalid(p, list, "if '*' is present, must not specify other "+what)
	}
}

func validateFlowSubject(f *check.Faults, s flowcontrolv1.Subject, p *field.Path) {
	type part struct {
		kind  flowcontrolv1.SubjectKind
		field string
		set   bool
	}
	parts := []part{
		{flowcontrolv1.SubjectKindUser, "user", s.User != nil},
		{flowcontrolv1.SubjectKindGroup, "group", s.Group != nil},
		{flowcontrolv1.SubjectKindServiceAccount, "serviceAccount", s.ServiceAccount != nil},
	}
	check.Among(f, p.Child("kind"), s.Kind, flowcontrolv1.SubjectKindUser, flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount)
	known := slices.ContainsFunc(parts, func(x part) bool { return x.kind == s.Kind })
	for _, x := range parts {
		switch {
		case x.kind == s.Kind && !x.set:
			f.Required(p.Child(x.field), x.field+" is required when subject kind is '"+string(x.kind)+"'")
		case known && x.kind != s.Kind && x.set:
			f.Forbidden(p.Child(x.field), x.field+" is forbidden when subject kind is not '"+string(x.kind)+"'")
		}
	}
	if s.User != nil && s.Kind == flowcontrolv1.SubjectKindUser {
		f.Need(p.Child("user", "name"), s.User.Name)
	}
	if s.Group != nil && s.Kind == flowcontrolv1.SubjectKindGroup {
		f.Need(p.Child("group", "name"), s.Group.Name)
	}
	if a := s.ServiceAccount; a != nil && s.Kind == flowcontrolv1.SubjectKindServiceAccount {
		if f.Need(p.Child("serviceAccount", "name"), a.Name) && a.Name != "*" {
			f.Subdomain(p.Child("serviceAccount", "name"), a.Name)
		}
		if a.Namespace == "" {
			f.Required(p.Child("serviceAccount", "namespace"), "must specify namespace for service account")
		} else {
			f.Label(p.Child("serviceAccount", "namespace"), a.Namespace)
		}
	}
}

var priorityLevelConfigurations = Resource[flowcontrolv1.PriorityLevelConfiguration]{
	Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Kind: "PriorityLevelConfiguration", Plural: "prioritylevelconfigurations", WholeMeta: true,
	Prefix: "prioritylevelconfigurations", Scope: Cluster, List: listOf[flowcontrolv1.PriorityLevelConfigurationList],
	Default: func(c *flowcontrolv1.PriorityLevelConfiguration) {
		if e := c.Spec.Exempt; e != nil {
			defPtr(&e.NominalConcurrencyShares, 0)
			defPtr(&e.LendablePercent, 0)
		}
		if l := c.Spec.Limited; l != nil {
			defPtr(&l.NominalConcurrencyShares, 30)
			defPtr(&l.LendablePercent, 0)
			if q := l.LimitResponse.Queuing; q != nil {
				def(&q.HandSize, 8)
				def(&q.Queues, 64)
				def(&q.QueueLengthLimit, 50)
			}
		}
	},
	Main: mainPart(func(c *flowcontrolv1.PriorityLevelConfiguration) *flowcontrolv1.PriorityLevelConfigurationStatus {
		return &c.Status
	}, validatePriorityLevel),
	Status: keepMeta(statusPart(func(c *flowcontrolv1.PriorityLevelConfiguration) *flowcontrolv1.PriorityLevelConfigurationSpec {
		return &c.Spec
	},
		func(c, _ *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
			var f check.Faults
			types := check.Seen[string]{}
			for i, x := range c.Status.Conditions {
				conditionType(&f, types, string(x.Type), i)
			}
			return f.List()
		})),
	Docs: map[string]string{
		"Type":                     flowcontrolv1.PriorityLevelConfigurationSpec{}.SwaggerDoc()["type"],
		"NominalConcurrencyShares": flowcontrolv1.LimitedPriorityLevelConfiguration{}.SwaggerDoc()["nominalConcurrencyShares"],
		"Queues":                   flowcontrolv1.QueuingConfiguration{}.SwaggerDoc()["queues"],
		"HandSize":                 flowcontrolv1.QueuingConfiguration{}.SwaggerDoc()["handSize"],
		"QueueLengthLimit":         flowcontrolv1.QueuingConfiguration{}.SwaggerDoc()["queueLengthLimit"],
	},
	Columns: []Column[flowcontrolv1.PriorityLevelConfiguration]{
		text("Type", func(c *flowcontrolv1.PriorityLevelConfiguration) string { return string(c.Spec.Type) }),
		limitedColumn("NominalConcurrencyShares", func(l *flowcontrolv1.LimitedPriorityLevelConfiguration) *int32 { return l.NominalConcurrencyShares }),
		queueColumn("Queues", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.Queues }),
		queueColumn("HandSize", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.HandSize }),
		queueColumn("QueueLengthLimit", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.QueueLengthLimit }),
		ageColumn[flowcontrolv1.PriorityLevelConfiguration](),
	},
}

func limitedColumn(name string, get func(*flowcontrolv1.LimitedPriorityLevelConfiguration) *int32) Column[flowcontrolv1.PriorityLevelConfiguration] {
	return Column[flowcontrolv1.PriorityLevelConfiguration]{Name: name, Type: "string", Cell: func(c *flowcontrolv1.PriorityLevelConfiguration, _ time.Time) any {
		if c.Spec.Limited == nil {
			return "<none>"
		}
		if n := get(c.Spec.Limited); n != nil {
			return int64(*n)
		}
		return "<none>"
	}}
}

func queueColumn(name string, get func(*flowcontrolv1.QueuingConfiguration) int32) Column[flowcontrolv1.PriorityLevelConfiguration] {
	return limitedColumn(name, func(l *flowcontrolv1.LimitedPriorityLevelConfiguration) *int32 {
		if l.LimitResponse.Queuing == nil {
			return nil
		}
		n := get(l.LimitResponse.Queuing)
		return &n
	})
}

func validatePriorityLevel(c, _ *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	var f check.Faults
	s, p := &c.Spec, field.NewPath("spec")
	if (c.Name == "exempt") != (s.Type == flowcontrolv1.PriorityLevelEnablementExempt) {
		f.Invalid(p.Child("type"), s.Type, "must be 'Exempt' if and only if `name` is 'exempt'")
	}
	percent := func(v *int32, p *field.Path) {
		if v != nil && (*v < 0 || *v > 100) {
			f.Invalid(p, *v, "must be between 0 and 100, inclusive")
		}
	}
	shares := func(v *int32, p *field.Path) {
		if v != nil && *v < 0 {
			f.Invalid(p, *v, "must be a non-negative integer")
		}
	}
	switch s.Type {
	case flowcontrolv1.PriorityLevelEnablementExempt:
		if s.Limited != nil {
			f.Forbidden(p.Child("limited"), "must be nil if the type is not Limited")
		}
		if s.Exempt != nil {
			shares(s.Exempt.NominalConcurrencyShares, p.Child("exempt", "nominalConcurrencyShares"))
			percent(s.Exempt.LendablePercent, p.Child("exempt", "lendablePercent"))
		}
	case flowcontrolv1.PriorityLevelEnablementLimited:
		if s.Exempt != nil {
			f.Forbidden(p.Child("exempt"), "must be nil if the type is Limited")
		}
		if s.Limited == nil {
			f.Required(p.Child("limited"), "must not be empty when type is Limited")
			break
		}
		l, at := s.Limited, p.Child("limited")
		shares(l.NominalConcurrencyShares, at.Child("nominalConcurrencyShares"))
		percent(l.LendablePercent, at.Child("lendablePercent"))
		if b := l.BorrowingLimitPercent; b != nil && *b < 0 {
			f.Invalid(at.Child("borrowingLimitPercent"), *b, "if specified, must be a non-negative integer")
		}
		at = at.Child("limitResponse")
		q := l.LimitResponse.Queuing
		switch l.LimitResponse.Type {
		case flowcontrolv1.LimitResponseTypeReject:
			if q != nil {
				f.Forbidden(at.Child("queuing"), "must be nil if limited.limitResponse.type is not Limited")
			}
		case flowcontrolv1.LimitResponseTypeQueue:
			at := at.Child("queuing")
			if q == nil {
				f.Required(at, "must not be empty if limited.limitResponse.type is Limited")
				break
			}
			validateQueuing(&f, q, at)
		default:
			check.Among(&f, at.Child("type"), l.LimitResponse.Type, flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject)
		}
	default:
		check.Among(&f, p.Child("type"), s.Type, flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited)
	}
	return f.List()
}
