package resources

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// The four kinds of RBAC share their rules. Whether somebody may grant what a
// role says is not decided here: authorization knows the rules of the requester.

var roles = Resource[rbacv1.Role]{
	Group: rbacv1.GroupName, Version: "v1", Kind: "Role", WholeMeta: true, Plural: "roles", Prefix: "roles",
	List: listOf[rbacv1.RoleList], NoGeneration: true, CreateOnUpdate: true, Name: PathSegment,
	Main: plainPart(func(r, _ *rbacv1.Role) field.ErrorList {
		var f check.Faults
		for i := range r.Rules {
			validateRule(&f, &r.Rules[i], true, field.NewPath("rules").Index(i))
		}
		return f.List()
	}),
	Columns: []Column[rbacv1.Role]{createdAtColumn[rbacv1.Role]()},
}

var clusterRoles = Resource[rbacv1.ClusterRole]{
	Group: rbacv1.GroupName, Version: "v1", Kind: "ClusterRole", WholeMeta: true, Plural: "clusterroles", Prefix: "clusterroles", Scope: Cluster,
	List: listOf[rbacv1.ClusterRoleList], NoGeneration: true, CreateOnUpdate: true, Name: PathSegment,
	Main: plainPart(func(r, _ *rbacv1.ClusterRole) field.ErrorList {
		var f check.Faults
		for i := range r.Rules {
			validateRule(&f, &r.Rules[i], false, field.NewPath("rules").Index(i))
		}
		if a := r.AggregationRule; a != nil {
			p := field.NewPath("aggregationRule", "clusterRoleSelectors")
			if len(a.ClusterRoleSelectors) == 0 {
				f.Required(p, "at least one clusterRoleSelector required if aggregationRule is non-nil")
			}
			for i := range a.ClusterRoleSelectors {
				if errs := selectorFaults(&a.ClusterRoleSelectors[i], p.Index(i)); len(errs) > 0 {
					f.Add(errs)
					f.Invalid(p.Index(i), nil, "invalid label selector.")
				}
			}
		}
		return f.List()
	}),
	Columns: []Column[rbacv1.ClusterRole]{createdAtColumn[rbacv1.ClusterRole]()},
}

var roleBindings = Resource[rbacv1.RoleBinding]{
	Group: rbacv1.GroupName, Version: "v1", Kind: "RoleBinding", WholeMeta: true, Plural: "rolebindings", Prefix: "rolebindings",
	List: listOf[rbacv1.RoleBindingList], NoGeneration: true, CreateOnUpdate: true, Name: PathSegment,
	Default: func(b *rbacv1.RoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) },
	Main: plainPart(func(b, old *rbacv1.RoleBinding) field.ErrorList {
		var was *rbacv1.RoleRef
		if old != nil {
			was = &old.RoleRef
		}
		return validateRoleBinding(b.RoleRef, was, b.Subjects, true, "Role", "ClusterRole")
	}),
	Docs: map[string]string{
		"Role":            rbacv1.RoleBinding{}.SwaggerDoc()["roleRef"],
		"Users":           "The users bound to the role.",
		"Groups":          "The groups bound to the role.",
		"ServiceAccounts": "The service accounts bound to the role.",
	},
	Columns: bindingColumns(func(b *rbacv1.RoleBinding) (rbacv1.RoleRef, []rbacv1.Subject) { return b.RoleRef, b.Subjects }),
}

var clusterRoleBindings = Resource[rbacv1.ClusterRoleBinding]{
	Group: rbacv1.GroupName, Version: "v1", Kind: "ClusterRoleBinding", WholeMeta: true, Plural: "clusterrolebindings", Prefix: "clusterrolebindings", Scope: Cluster,
	List: listOf[rbacv1.ClusterRoleBindingList], NoGeneration: true, CreateOnUpdate: true, Name: PathSegment,
	Default: func(b *rbacv1.ClusterRoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) },
	Main: plainPart(func(b, old *rbacv1.ClusterRoleBinding) field.ErrorList {
		var was *rbacv1.RoleRef
		if old != nil {
			was = &old.RoleRef
		}
		return validateRoleBinding(b.RoleRef, was, b.Subjects, false, "ClusterRole")
	}),
	Docs: map[string]string{
		"Role":            rbacv1.ClusterRoleBinding{}.SwaggerDoc()["roleRef"],
		"Users":           "The users bound to the role.",
		"Groups":          "The groups bound to the role.",
		"ServiceAccounts": "The service accounts bound to the role.",
	},
	Columns: bindingColumns(func(b *rbacv1.ClusterRoleBinding) (rbacv1.RoleRef, []rbacv1.Subject) { return b.RoleRef, b.Subjects }),
}

func validateRule(f *check.Faults, r *rbacv1.PolicyRule, namespaced bool, p *field.Path) {
	if len(r.Verbs) == 0 {
		f.Required(p.Child("verbs"), "verbs must contain at least one value")
	}
	if len(r.NonResourceURLs) > 0 {
		if namespaced {
			f.Invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs")
		}
		if len(r.APIGroups)+len(r.Resources)+len(r.ResourceNames) > 0 {
			f.Invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs")
		}
		return
	}
	if len(r.APIGroups) == 0 {
		f.Required(p.Child("apiGroups"), "resource rules must supply at least one api group")
	}
	if len(r.Resources) == 0 {
		f.Required(p.Child("resources"), "resource rules must supply at least one resource")
	}
}

func defaultBinding(ref *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	def(&ref.APIGroup, rbacv1.GroupName)
	for i := range subjects {
		if k := subjects[i].Kind; k == rbacv1.UserKind || k == rbacv1.GroupKind {
			def(&subjects[i].APIGroup, rbacv1.GroupName)
		}
	}
}

func validateRoleBinding(ref rbacv1.RoleRef, was *rbacv1.RoleRef, subjects []rbacv1.Subject, namespaced bool, kinds ...string) field.ErrorList {
	var f check.Faults
	p := field.NewPath("roleRef")
	check.Among(&f, p.Child("apiGroup"), ref.APIGroup, rbacv1.GroupName)
	check.Listed(&f, p.Child("kind"), ref.Kind, kinds...)
	f.Segment(p.Child("name"), ref.Name)
	for i, s := range subjects {
		at := field.NewPath("subjects").Index(i)
		f.Need(at.Child("name"), s.Name)
		switch s.Kind {
		case rbacv1.ServiceAccountKind:
			if s.Name != "" {
				f.Subdomain(at.Child("name"), s.Name)
			}
			check.Among(&f, at.Child("apiGroup"), s.APIGroup, "")
			if !namespaced {
				f.Need(at.Child("namespace"), s.Namespace)
			}
		case rbacv1.UserKind, rbacv1.GroupKind:
			check.Among(&f, at.Child("apiGroup"), s.APIGroup, rbacv1.GroupName)
		default:
			check.Listed(&f, at.Child("kind"), s.Kind, rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind)
		}
	}
	if was != nil && *was != ref {
		f.Invalid(p, struct{ APIGroup, Kind, Name string }(ref), "cannot change roleRef") // spelled so in upstream's answer
	}
	return f.List()
}

func bindingColumns[T any](parts func(*T) (rbacv1.RoleRef, []rbacv1.Subject)) []Column[T] {
	of := func(kinds ...string) func(*T) string {
		return func(o *T) string {
			var out []string
			_, subjects := parts(o)
			for _, s := range subjects {
				if !slices.Contains(kinds, s.Kind) {
					continue
				}
				name := s.Name
				if s.Kind == rbacv1.ServiceAccountKind {
					name = s.Namespace + "/" + s.Name
				}
				out = append(out, name)
			}
			return strings.Join(out, ", ")
		}
	}
	return []Column[T]{
		text("Role", func(o *T) string { ref, _ := parts(o); return ref.Kind + "/" + ref.Name }),
		ageColumn[T](),
		wide(text("Users", of(rbacv1.UserKind))),
		wide(text("Groups", of(rbacv1.GroupKind))),
		wide(text("ServiceAccounts", of(rbacv1.ServiceAccountKind))),
	}
}
