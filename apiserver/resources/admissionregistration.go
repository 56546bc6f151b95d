package resources

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/util/jsonpath"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// Webhooks and policies of admission. CEL expressions are checked for presence
// here; that they compile is checked where they are run.

var apiExtensions = []string{"api-extensions"}

func defaultRules(rules []admissionv1.RuleWithOperations) {
	for i := range rules {
		defPtr(&rules[i].Scope, admissionv1.AllScopes)
	}
}

func defaultClient(c *admissionv1.WebhookClientConfig) {
	if c.Service != nil {
		defPtr(&c.Service.Port, 443)
	}
}

func defaultMatch(m *admissionv1.MatchResources) {
	if m == nil {
		return
	}
	defPtr(&m.MatchPolicy, admissionv1.Equivalent)
	defPtr(&m.NamespaceSelector, metav1.LabelSelector{})
	defPtr(&m.ObjectSelector, metav1.LabelSelector{})
	for _, list := range [][]admissionv1.NamedRuleWithOperations{m.ResourceRules, m.ExcludeResourceRules} {
		for i := range list {
			defPtr(&list[i].Scope, admissionv1.AllScopes)
		}
	}
}

var validatingWebhookConfigurations = Resource[admissionv1.ValidatingWebhookConfiguration]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration", Plural: "validatingwebhookconfigurations", WholeMeta: true, AnyFinalizer: true,
	Prefix: "validatingwebhookconfigurations", Categories: apiExtensions, Scope: Cluster, NeedsVersion: true,
	List: listOf[admissionv1.ValidatingWebhookConfigurationList],
	Default: func(c *admissionv1.ValidatingWebhookConfiguration) {
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			defPtr(&w.FailurePolicy, admissionv1.Fail)
			defPtr(&w.MatchPolicy, admissionv1.Equivalent)
			defPtr(&w.NamespaceSelector, metav1.LabelSelector{})
			defPtr(&w.ObjectSelector, metav1.LabelSelector{})
			defPtr(&w.TimeoutSeconds, 10)
			defaultClient(&w.ClientConfig)
			defaultRules(w.Rules)
		}
	},
	Main: plainPart(func(c, _ *admissionv1.ValidatingWebhookConfiguration) field.ErrorList {
		var f check.Faults
		names := check.Seen[string]{}
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			validateWebhook(&f, &webhook{
				w.Name, w.ClientConfig, w.Rules, w.FailurePolicy, w.MatchPolicy, w.NamespaceSelector, w.ObjectSelector,
				w.SideEffects, w.TimeoutSeconds, nil, w.AdmissionReviewVersions, w.MatchConditions,
			}, names, field.NewPath("webhooks").Index(i))
		}
		return f.List()
	}),
	Docs: map[string]string{
		"Webhooks": "How many webhooks it has.",
	},
	Columns: []Column[admissionv1.ValidatingWebhookConfiguration]{
		number("Webhooks", func(c *admissionv1.ValidatingWebhookConfiguration) int { return len(c.Webhooks) }),
		ageColumn[admissionv1.ValidatingWebhookConfiguration](),
	},
}

var mutatingWebhookConfigurations = Resource[admissionv1.MutatingWebhookConfiguration]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration", Plural: "mutatingwebhookconfigurations", WholeMeta: true, AnyFinalizer: true,
	Prefix: "mutatingwebhookconfigurations", Categories: apiExtensions, Scope: Cluster, NeedsVersion: true,
	List: listOf[admissionv1.MutatingWebhookConfigurationList],
	Default: func(c *admissionv1.MutatingWebhookConfiguration) {
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			defPtr(&w.FailurePolicy, admissionv1.Fail)
			defPtr(&w.MatchPolicy, admissionv1.Equivalent)
			defPtr(&w.NamespaceSelector, metav1.LabelSelector{})
			defPtr(&w.ObjectSelector, metav1.LabelSelector{})
			defPtr(&w.TimeoutSeconds, 10)
			defPtr(&w.ReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
			defaultClient(&w.ClientConfig)
			defaultRules(w.Rules)
		}
	},
	Main: plainPart(func(c, _ *admissionv1.MutatingWebhookConfiguration) field.ErrorList {
		var f check.Faults
		names := check.Seen[string]{}
		for i := range c.Webhooks {
			w, p := &c.Webhooks[i], field.NewPath("webhooks").Index(i)
			validateWebhook(&f, &webhook{
				w.Name, w.ClientConfig, w.Rules, w.FailurePolicy, w.MatchPolicy, w.NamespaceSelector, w.ObjectSelector,
				w.SideEffects, w.TimeoutSeconds, w.ReinvocationPolicy, w.AdmissionReviewVersions, w.MatchConditions,
			}, names, p)
		}
		return f.List()
	}),
	Docs: map[string]string{
		"Webhooks": "How many webhooks it has.",
	},
	Columns: []Column[admissionv1.MutatingWebhookConfiguration]{
		number("Webhooks", func(c *admissionv1.MutatingWebhookConfiguration) int { return len(c.Webhooks) }),
		ageColumn[admissionv1.MutatingWebhookConfiguration](),
	},
}

// webhook is what both kinds of webhooks have in common.
type webhook struct {
	name       string
	client     admissionv1.WebhookClientConfig
	rules      []admissionv1.RuleWithOperations
	failure    *admissionv1.FailurePolicyType
	match      *admissionv1.MatchPolicyType
	namespaces *metav1.LabelSelector
	objects    *metav1.LabelSelector
	effects    *admissionv1.SideEffectClass
	timeout    *int32
	again      *admissionv1.ReinvocationPolicyType // nil: it mutates nothing
	versions   []string
	conditions []admissionv1.MatchCondition
}

func validateWebhook(f *check.Faults, w *webhook, names check.Seen[string], p *field.Path) {
	f.Add(validation.IsFullyQualifiedName(p.Child("name"), w.name))
	for i := range w.rules {
		validateAdmissionRule(f, &w.rules[i], p.Child("rules").Index(i))
	}
	check.AmongPtr(f, p.Child("failurePolicy"), w.failure, admissionv1.Fail, admissionv1.Ignore)
	check.AmongPtr(f, p.Child("matchPolicy"), w.match, admissionv1.Equivalent, admissionv1.Exact)
	if w.effects == nil {
		f.Required(p.Child("sideEffects"), "must specify one of None, NoneOnDryRun")
	} else {
		check.Among(f, p.Child("sideEffects"), *w.effects, admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun)
	}
	if w.timeout != nil && (*w.timeout < 1 || *w.timeout > 30) {
		f.Invalid(p.Child("timeoutSeconds"), *w.timeout, "the timeout value must be between 1 and 30 seconds")
	}
	f.Add(selectorFaults(w.namespaces, p.Child("namespaceSelector")))
	f.Add(selectorFaults(w.objects, p.Child("objectSelector")))
	check.AmongPtr(f, p.Child("reinvocationPolicy"), w.again, admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
	at := p.Child("clientConfig")
	switch c := w.client; {
	case (c.URL == nil) == (c.Service == nil):
		f.Required(at, "exactly one of url or service is required")
	case c.URL != nil:
		validateWebhookURL(f, *c.URL, at.Child("url"))
	default:
		at := at.Child("service")
		// Upstream reports each under the other's field, and clients see that.
		f.Need(at.Child("name"), c.Service.Namespace)
		f.Need(at.Child("namespace"), c.Service.Name)
		if c.Service.Port != nil {
			for _, msg := range validation.IsValidPortNum(int(*c.Service.Port)) {
				f.Invalid(at.Child("port"), *c.Service.Port, "port is not valid: "+msg)
			}
		}
		validateServicePath(f, valueOr(c.Service.Path, ""), at.Child("path"))
	}
	validateConditions(f, w.conditions, p.Child("matchConditions"))
	at = p.Child("admissionReviewVersions")
	seen := check.Seen[string]{}
	for i, v := range w.versions {
		if seen.Again(v) {
			f.Invalid(at.Index(i), v, "duplicate version")
			continue
		}
		f.Each(at.Index(i), v, validation.IsDNS1035Label(v))
	}
	switch {
	case len(w.versions) == 0:
		f.Required(at, "must specify one of v1, v1beta1")
	case !seen["v1"] && !seen["v1beta1"]:
		f.Invalid(at, w.versions, "must include at least one of v1, v1beta1")
	}
	if w.name != "" && names.Again(w.name) {
		f.Duplicate(p.Child("name"), w.name)
	}
}

// validateServicePath: every part of the path is a name. The slash at its end may be there or not.
func validateServicePath(f *check.Faults, path string, p *field.Path) {
	if path == "" || path == "/" {
		return
	}
	if !strings.HasPrefix(path, "/") {
		f.Invalid(p, path, "must start with a '/'")
	}
	for i, part := range strings.Split(strings.TrimSuffix(path[1:], "/"), "/") {
		if part == "" {
			f.Invalid(p, path, fmt.Sprintf("segment[%d] may not be empty", i))
			continue
		}
		for _, fault := range validation.IsDNS1123Subdomain(part) {
			f.Invalid(p, path, fmt.Sprintf("segment[%d]: %s", i, fault))
		}
	}
}

func validateWebhookURL(f *check.Faults, text string, p *field.Path) {
	const form = "; desired format: https://host[/path]"
	u, err := url.Parse(text)
	if err != nil {
		f.Required(p, "url must be a valid URL: "+err.Error()+form)
		return
	}
	if u.Scheme != "https" {
		f.Invalid(p, u.Scheme, "'https' is the only allowed URL scheme"+form)
	}
	if u.Host == "" {
		f.Invalid(p, u.Host, "host must be specified"+form)
	}
	if u.User != nil {
		f.Invalid(p, u.User.String(), "user information is not permitted in the URL")
	}
	if u.Fragment != "" {
		f.Invalid(p, u.Fragment, "fragments are not permitted in the URL")
	}
	if u.RawQuery != "" {
		f.Invalid(p, u.RawQuery, "query parameters are not permitted in the URL")
	}
}

func validateConditions(f *check.Faults, list []admissionv1.MatchCondition, p *field.Path) {
	if n := len(list); n > 64 {
		f.TooMany(p, n, 64)
	}
	names := check.Seen[string]{}
	for i, c := range list {
		at := p.Index(i)
		if strings.TrimSpace(c.Expression) == "" {
			f.Required(at.Child("expression"), "")
		}
		if f.Need(at.Child("name"), c.Name) {
			f.QualifiedName(at.Child("name"), c.Name)
			if names.Again(c.Name) {
				f.Duplicate(at.Child("name"), c.Name)
			}
		}
	}
}

func validateAdmissionRule(f *check.Faults, r *admissionv1.RuleWithOperations, p *field.Path) {
	at := p.Child("operations")
	if len(r.Operations) == 0 {
		f.Required(at, "")
	}
	if len(r.Operations) > 1 && slices.Contains(r.Operations, admissionv1.OperationAll) {
		f.Invalid(at, r.Operations, "if '*' is present, must not specify other operations")
	}
	for i, o := range r.Operations {
		check.Among(f, at.Index(i), o, admissionv1.OperationAll, admissionv1.Create, admissionv1.Update, admissionv1.Delete, admissionv1.Connect)
	}
	alone := func(name string, list []string) {
		at := p.Child(name)
		if len(list) == 0 {
			f.Required(at, "")
		}
		if len(list) > 1 && slices.Contains(list, "*") {
			f.Invalid(at, list, "if '*' is present, must not specify other "+map[string]string{"apiGroups": "API groups", "apiVersions": "API versions"}[name])
		}
	}
	alone("apiGroups", r.APIGroups)
	alone("apiVersions", r.APIVersions)
	for i, v := range r.APIVersions {
		f.Need(p.Child("apiVersions").Index(i), v)
	}
	at = p.Child("resources")
	if len(r.Resources) == 0 {
		f.Required(at, "")
	}
	// What a wildcard covers already may not follow it.
	whole, every := check.Seen[string]{}, check.Seen[string]{} // resources of all subresources; subresources of all resources
	single := false
	for i, x := range r.Resources {
		if !f.Need(at.Index(i), x) {
			continue
		}
		res, sub, part := strings.Cut(x, "/")
		if !part {
			single = x != "*" // of several, the last one counts
			continue
		}
		if whole[res] {
			f.Invalid(at.Index(i), x, fmt.Sprintf("if '%s/*' is present, must not specify %s", res, x))
		}
		if every[sub] {
			f.Invalid(at.Index(i), x, fmt.Sprintf("if '*/%s' is present, must not specify %s", sub, x))
		}
		if sub == "*" {
			whole.Again(res)
		}
		if res == "*" {
			every.Again(sub)
		}
	}
	if len(r.Resources) > 1 && slices.Contains(r.Resources, "*/*") {
		f.Invalid(at, r.Resources, "if '*/*' is present, must not specify other resources")
	}
	if single && slices.Contains(r.Resources, "*") {
		f.Invalid(at, r.Resources, "if '*' is present, must not specify other resources without subresources")
	}
	check.AmongPtr(f, p.Child("scope"), r.Scope, admissionv1.AllScopes, admissionv1.ClusterScope, admissionv1.NamespacedScope)
}

func validateMatch(f *check.Faults, m *admissionv1.MatchResources, required bool, p *field.Path) {
	if m == nil {
		if required {
			f.Required(p, "")
		}
		return
	}
	check.AmongPtr(f, p.Child("matchPolicy"), m.MatchPolicy, admissionv1.Equivalent, admissionv1.Exact)
	f.Add(selectorFaults(m.NamespaceSelector, p.Child("namespaceSelector")))
	f.Add(selectorFaults(m.ObjectSelector, p.Child("objectSelector")))
	if required && len(m.ResourceRules) == 0 {
		f.Required(p.Child("resourceRules"), "")
	}
	named := func(list []admissionv1.NamedRuleWithOperations, p *field.Path) {
		for i := range list {
			names, at := check.Seen[string]{}, p.Index(i).Child("resourceNames")
			for j, n := range list[i].ResourceNames {
				f.Each(at.Index(j), n, content.IsPathSegmentName(n))
				if names.Again(n) {
					f.Duplicate(at.Index(j), n)
				}
			}
			validateAdmissionRule(f, &list[i].RuleWithOperations, p.Index(i))
		}
	}
	named(m.ResourceRules, p.Child("resourceRules"))
	named(m.ExcludeResourceRules, p.Child("excludeResourceRules"))
}

func validateParamKind(f *check.Faults, k *admissionv1.ParamKind, p *field.Path) {
	if k == nil {
		return
	}
	if f.Need(p.Child("apiVersion"), k.APIVersion) {
		switch gv, err := schema.ParseGroupVersion(k.APIVersion); {
		case err != nil:
			f.Invalid(p.Child("apiVersion"), k.APIVersion, err.Error())
		case gv.Version == "":
			f.Invalid(p.Child("apiVersion"), k.APIVersion, "version must be specified")
		default:
			if gv.Group != "" {
				f.Subdomain(p.Child("apiVersion"), gv.Group)
			}
			f.Each(p.Child("apiVersion"), gv.Version, validation.IsDNS1035Label(gv.Version))
		}
	}
	if f.Need(p.Child("kind"), k.Kind) {
		if faults := validation.IsDNS1035Label(strings.ToLower(k.Kind)); len(faults) > 0 {
			f.Invalid(p.Child("kind"), k.Kind, "may have mixed case, but should otherwise match: "+strings.Join(faults, ","))
		}
	}
}

var expressionWord = regexp.MustCompile(`^[_a-zA-Z][_a-zA-Z0-9]*$`)

// expressionName reports a word that can name something in CEL. Source: the CEL language definition, "Syntax".
func expressionName(s string) bool {
	switch s {
	case "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let",
		"loop", "package", "namespace", "return", "var", "void", "while":
		return false
	}
	return expressionWord.MatchString(s)
}

func validateVariables(f *check.Faults, list []admissionv1.Variable, p *field.Path) {
	for i, v := range list { // names may come twice
		if strings.TrimSpace(v.Name) == "" {
			f.Required(p.Index(i).Child("name"), "name is not specified")
		} else if !expressionName(v.Name) {
			f.Invalid(p.Index(i).Child("name"), v.Name, "must be a valid CEL identifier")
		}
		if strings.TrimSpace(v.Expression) == "" {
			f.Required(p.Index(i).Child("expression"), "expression is not specified")
		}
	}
}

var validatingAdmissionPolicies = Resource[admissionv1.ValidatingAdmissionPolicy]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicy", Plural: "validatingadmissionpolicies", WholeMeta: true, AnyFinalizer: true,
	Prefix: "validatingadmissionpolicies", Categories: apiExtensions, Scope: Cluster, NeedsVersion: true,
	List: listOf[admissionv1.ValidatingAdmissionPolicyList],
	Default: func(v *admissionv1.ValidatingAdmissionPolicy) {
		defPtr(&v.Spec.FailurePolicy, admissionv1.Fail)
		defaultMatch(v.Spec.MatchConstraints)
	},
	Main: mainPart(func(v *admissionv1.ValidatingAdmissionPolicy) *admissionv1.ValidatingAdmissionPolicyStatus {
		return &v.Status
	}, func(v, _ *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
		var f check.Faults
		s, p := &v.Spec, field.NewPath("spec")
		check.AmongPtr(&f, p.Child("failurePolicy"), s.FailurePolicy, admissionv1.Fail, admissionv1.Ignore)
		validateParamKind(&f, s.ParamKind, p.Child("paramKind"))
		validateMatch(&f, s.MatchConstraints, true, p.Child("matchConstraints"))
		validateConditions(&f, s.MatchConditions, p.Child("matchConditions"))
		validateVariables(&f, s.Variables, p.Child("variables"))
		if len(s.Validations)+len(s.AuditAnnotations) == 0 {
			f.Required(p.Child("validations"), "validations or auditAnnotations must contain at least one item")
			f.Required(p.Child("auditAnnotations"), "validations or auditAnnotations must contain at least one item")
		}
		for i, x := range s.Validations {
			if strings.TrimSpace(x.Expression) == "" {
				f.Required(p.Child("validations").Index(i).Child("expression"), "expression is not specified")
			}
			text := func(name, value string) {
				trimmed := strings.TrimSpace(value)
				switch at := p.Child("validations").Index(i).Child(name); {
				case value != "" && trimmed == "":
					f.Invalid(at, value, "must be non-empty if specified")
				case name == "message" && strings.ContainsAny(trimmed, "\r\n"):
					f.Invalid(at, value, "must not contain line breaks")
				}
			}
			text("messageExpression", x.MessageExpression)
			text("message", x.Message)
			if r := x.Reason; r != nil {
				check.Among(&f, p.Child("validations").Index(i).Child("reason"), *r, metav1.StatusReasonForbidden,
					metav1.StatusReasonInvalid, metav1.StatusReasonRequestEntityTooLarge)
			}
		}
		keys := check.Seen[string]{}
		if len(s.AuditAnnotations) > 20 {
			f.Invalid(p.Child("auditAnnotations"), check.Shown(s.AuditAnnotations), "must not have more than 20 auditAnnotations")
		}
		for i, a := range s.AuditAnnotations {
			if keys.Again(a.Key) {
				f.Duplicate(p.Child("auditAnnotations").Index(i).Child("key"), a.Key)
			}
			if at := p.Child("auditAnnotations").Index(i).Child("key"); v.Name == "" {
				f.Invalid(at, a.Key, "requires metadata.name be non-empty")
			} else {
				f.QualifiedName(at, v.Name+"/"+a.Key)
			}
			if strings.TrimSpace(a.ValueExpression) == "" {
				f.Required(p.Child("auditAnnotations").Index(i).Child("valueExpression"), "valueExpression is not specified")
			}
		}
		return f.List()
	}),
	Status: keepMeta(statusPart(func(v *admissionv1.ValidatingAdmissionPolicy) *admissionv1.ValidatingAdmissionPolicySpec {
		return &v.Spec
	}, validatePolicyStatus)),
	Docs: map[string]string{
		"Validations": "How many expressions it holds objects against.",
		"ParamKind":   admissionv1.ValidatingAdmissionPolicySpec{}.SwaggerDoc()["paramKind"],
	},
	Columns: []Column[admissionv1.ValidatingAdmissionPolicy]{
		number("Validations", func(v *admissionv1.ValidatingAdmissionPolicy) int { return len(v.Spec.Validations) }),
		text("ParamKind", func(v *admissionv1.ValidatingAdmissionPolicy) string { return paramKindText(v.Spec.ParamKind) }),
		ageColumn[admissionv1.ValidatingAdmissionPolicy](),
	},
}

func validatePolicyStatus(v, _ *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
	var f check.Faults
	p := field.NewPath("status")
	if t := v.Status.TypeChecking; t != nil {
		for i, w := range t.ExpressionWarnings {
			at := p.Child("typeChecking", "expressionWarnings").Index(i)
			f.Need(at.Child("warning"), w.Warning)
			if ref := strings.TrimSpace(w.FieldRef); f.Need(at.Child("fieldRef"), ref) {
				if err := jsonpath.New("spec").Parse("{" + ref + "}"); err != nil {
					f.Invalid(at.Child("fieldRef"), ref, "invalid JSONPath: "+err.Error())
				}
			}
		}
	}
	f.Add(metavalidation.ValidateConditions(v.Status.Conditions, p.Child("conditions")))
	return f.List()
}

func paramKindText(k *admissionv1.ParamKind) string {
	if k == nil {
		return "<unset>"
	}
	return k.APIVersion + "/" + k.Kind
}

func paramRefText(r *admissionv1.ParamRef) string {
	switch {
	case r == nil:
	case r.Name != "" && r.Namespace != "":
		return r.Namespace + "/" + r.Name
	case r.Name != "":
		return "*/" + r.Name
	case r.Selector != nil:
		return r.Selector.String()
	}
	return "<unset>"
}

func validateParamRef(f *check.Faults, r *admissionv1.ParamRef, p *field.Path) {
	if r == nil {
		return
	}
	if r.Name != "" {
		f.Each(p.Child("name"), r.Name, content.IsPathSegmentName(r.Name))
		if r.Selector != nil {
			f.Forbidden(p.Child("name"), "name and selector are mutually exclusive")
		}
	}
	f.Add(selectorFaults(r.Selector, p.Child("selector")))
	switch {
	case r.Name != "" && r.Selector != nil:
		f.Forbidden(p.Child("selector"), "name and selector are mutually exclusive")
	case r.Name == "" && r.Selector == nil:
		f.Required(p, "one of name or selector must be specified")
	}
	if a := valueOr(r.ParameterNotFoundAction, ""); f.Need(p.Child("parameterNotFoundAction"), string(a)) {
		check.Listed(f, p.Child("parameterNotFoundAction"), a, admissionv1.DenyAction, admissionv1.AllowAction)
	}
}

var validatingAdmissionPolicyBindings = Resource[admissionv1.ValidatingAdmissionPolicyBinding]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicyBinding", Plural: "validatingadmissionpolicybindings", WholeMeta: true, AnyFinalizer: true,
	Prefix: "validatingadmissionpolicybindings", Categories: apiExtensions, Scope: Cluster, NeedsVersion: true,
	List:    listOf[admissionv1.ValidatingAdmissionPolicyBindingList],
	Default: func(b *admissionv1.ValidatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) },
	Main: plainPart(func(b, _ *admissionv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
		var f check.Faults
		p := field.NewPath("spec")
		f.NeedName(p.Child("policyName"), b.Spec.PolicyName, validation.IsDNS1123Subdomain)
		validateParamRef(&f, b.Spec.ParamRef, p.Child("paramRef"))
		validateMatch(&f, b.Spec.MatchResources, false, p.Child("matchResources"))
		at := p.Child("validationActions")
		if len(b.Spec.ValidationActions) == 0 {
			f.Required(at, "at least one validation action is required")
		}
		seen := check.Seen[admissionv1.ValidationAction]{}
		for i, a := range b.Spec.ValidationActions {
			check.Among(&f, at.Index(i), a, admissionv1.Deny, admissionv1.Warn, admissionv1.Audit)
			if seen.Again(a) {
				f.Duplicate(at.Index(i), a)
			}
		}
		if seen[admissionv1.Deny] && seen[admissionv1.Warn] {
			f.Invalid(at, b.Spec.ValidationActions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)")
		}
		return f.List()
	}),
	Docs: map[string]string{
		"PolicyName": admissionv1.ValidatingAdmissionPolicyBindingSpec{}.SwaggerDoc()["policyName"],
		"ParamRef":   admissionv1.ValidatingAdmissionPolicyBindingSpec{}.SwaggerDoc()["paramRef"],
	},
	Columns: []Column[admissionv1.ValidatingAdmissionPolicyBinding]{
		text("PolicyName", func(b *admissionv1.ValidatingAdmissionPolicyBinding) string { return b.Spec.PolicyName }),
		text("ParamRef", func(b *admissionv1.ValidatingAdmissionPolicyBinding) string { return paramRefText(b.Spec.ParamRef) }),
		ageColumn[admissionv1.ValidatingAdmissionPolicyBinding](),
	},
}

var mutatingAdmissionPolicies = Resource[admissionv1.MutatingAdmissionPolicy]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicy", Plural: "mutatingadmissionpolicies", WholeMeta: true, AnyFinalizer: true,
	Prefix: "mutatingadmissionpolicies", Categories: apiExtensions, Scope: Cluster, NeedsVersion: true,
	List: listOf[admissionv1.MutatingAdmissionPolicyList],
	Default: func(m *admissionv1.MutatingAdmissionPolicy) {
		defPtr(&m.Spec.FailurePolicy, admissionv1.Fail)
		defaultMatch(m.Spec.MatchConstraints)
	},
	Main: plainPart(func(m, _ *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
		var f check.Faults
		s, p := &m.Spec, field.NewPath("spec")
		check.AmongPtr(&f, p.Child("failurePolicy"), s.FailurePolicy, admissionv1.Fail, admissionv1.Ignore)
		validateParamKind(&f, s.ParamKind, p.Child("paramKind"))
		validateMatch(&f, s.MatchConstraints, true, p.Child("matchConstraints"))
		onlyChanges(&f, s.MatchConstraints, p.Child("matchConstraints"))
		validateConditions(&f, s.MatchConditions, p.Child("matchConditions"))
		validateVariables(&f, s.Variables, p.Child("variables"))
		if len(s.Mutations) == 0 {
			f.Required(p.Child("mutations"), "mutations must contain at least one item")
		}
		for i, x := range s.Mutations {
			at := p.Child("mutations").Index(i)
			expression := func(name string, set bool, text string) {
				if !set {
					f.Required(at.Child(name), "must be specified when patchType is "+string(x.PatchType))
				} else if strings.TrimSpace(text) == "" {
					f.Required(at.Child(name, "expression"), "")
				}
			}
			without := func(name string, set bool) {
				if set {
					f.Invalid(at.Child(name), "{"+name+"}", "must not be specified when patchType is "+string(x.PatchType))
				}
			}
			switch x.PatchType {
			case admissionv1.PatchTypeApplyConfiguration:
				without("jsonPatch", x.JSONPatch != nil)
				expression("applyConfiguration", x.ApplyConfiguration != nil, textOf(x.ApplyConfiguration, func(a *admissionv1.ApplyConfiguration) string { return a.Expression }))
			case admissionv1.PatchTypeJSONPatch:
				without("applyConfiguration", x.ApplyConfiguration != nil)
				expression("jsonPatch", x.JSONPatch != nil, textOf(x.JSONPatch, func(a *admissionv1.JSONPatch) string { return a.Expression }))
			default:
				check.OneOf(&f, at.Child("patchType"), x.PatchType, admissionv1.PatchTypeApplyConfiguration, admissionv1.PatchTypeJSONPatch)
			}
		}
		check.OneOf(&f, p.Child("reinvocationPolicy"), s.ReinvocationPolicy, admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
		return f.List()
	}),
	Docs: map[string]string{
		"Mutations": "How many changes it makes.",
		"ParamKind": admissionv1.MutatingAdmissionPolicySpec{}.SwaggerDoc()["paramKind"],
	},
	Columns: []Column[admissionv1.MutatingAdmissionPolicy]{
		number("Mutations", func(m *admissionv1.MutatingAdmissionPolicy) int { return len(m.Spec.Mutations) }),
		text("ParamKind", func(m *admissionv1.MutatingAdmissionPolicy) string { return paramKindText(m.Spec.ParamKind) }),
		ageColumn[admissionv1.MutatingAdmissionPolicy](),
	},
}

func textOf[T any](p *T, get func(*T) string) string {
	if p == nil {
		return ""
	}
	return get(p)
}

// onlyChanges: what is deleted cannot be mutated.
func onlyChanges(f *check.Faults, m *admissionv1.MatchResources, p *field.Path) {
	if m == nil {
		return
	}
	for _, r := range m.ResourceRules {
		for _, o := range r.Operations {
			check.Among(f, p.Child("resourceRules", "operations"), o, admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Update)
		}
	}
}

var mutatingAdmissionPolicyBindings = Resource[admissionv1.MutatingAdmissionPolicyBinding]{
	Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingAdmissionPolicyBinding", Plural: "mutatingadmissionpolicybindings", WholeMeta: true, AnyFinalizer: true,
	Prefix: "mutatingadmissionpolicybindings", Categories: apiExtensions, Scope: Cluster, NeedsVersion: true,
	List:    listOf[admissionv1.MutatingAdmissionPolicyBindingList],
	Default: func(b *admissionv1.MutatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) },
	Main: plainPart(func(b, _ *admissionv1.MutatingAdmissionPolicyBinding) field.ErrorList {
		var f check.Faults
		p := field.NewPath("spec")
		f.NeedName(p.Child("policyName"), b.Spec.PolicyName, validation.IsDNS1123Subdomain)
		validateParamRef(&f, b.Spec.ParamRef, p.Child("paramRef"))
		validateMatch(&f, b.Spec.MatchResources, false, p.Child("matchResources"))
		onlyChanges(&f, b.Spec.MatchResources, p.Child("matchResources"))
		return f.List()
	}),
	Docs: map[string]string{
		"PolicyName": admissionv1.MutatingAdmissionPolicyBindingSpec{}.SwaggerDoc()["policyName"],
		"ParamRef":   admissionv1.MutatingAdmissionPolicyBindingSpec{}.SwaggerDoc()["paramRef"],
	},
	Columns: []Column[admissionv1.MutatingAdmissionPolicyBinding]{
		text("PolicyName", func(b *admissionv1.MutatingAdmissionPolicyBinding) string { return b.Spec.PolicyName }),
		text("ParamRef", func(b *admissionv1.MutatingAdmissionPolicyBinding) string { return paramRefText(b.Spec.ParamRef) }),
		ageColumn[admissionv1.MutatingAdmissionPolicyBinding](),
	},
}
