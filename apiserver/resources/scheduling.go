package resources

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// maxUserPriority is the highest value outside the system's own classes.
const maxUserPriority = 1_000_000_000

// systemPriorities are the classes that every cluster has.
var systemPriorities = map[string]int32{
	"system-cluster-critical": 2_000_000_000,
	"system-node-critical":    2_000_001_000,
}

var priorityClasses = Resource[schedulingv1.PriorityClass]{
	Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Plural: "priorityclasses", Prefix: "priorityclasses",
	Short: []string{"pc"}, Scope: Cluster, List: listOf[schedulingv1.PriorityClassList], NoGeneration: true,
	Default: func(c *schedulingv1.PriorityClass) { defPtr(&c.PreemptionPolicy, corev1.PreemptLowerPriority) },
	Main: Part[schedulingv1.PriorityClass]{Prepare: func(_ *Request, c, old *schedulingv1.PriorityClass) {
		if old == nil {
			c.Generation = 1 // and never more
		}
	}, Validate: withoutRequest(func(c, old *schedulingv1.PriorityClass) field.ErrorList {
		var f check.Faults
		if old != nil {
			// The name and what follows from it were checked when the class was made.
		} else if strings.HasPrefix(c.Name, "system-") {
			why := ""
			switch value, known := systemPriorities[c.Name]; {
			case !known:
				why = c.Name + " is not a known system priority class"
			case value != c.Value:
				why = fmt.Sprintf("value of %v PriorityClass must be %v", c.Name, value)
			case c.GlobalDefault:
				why = fmt.Sprintf("globalDefault of %v PriorityClass must be false", c.Name)
			}
			if why != "" {
				f.Forbidden(field.NewPath("metadata", "name"), "priority class names with 'system-' prefix are reserved for system use only. error: "+why)
			}
		} else if c.Value > maxUserPriority {
			f.Forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %v", maxUserPriority))
		}
		if at := field.NewPath("preemptionPolicy"); old == nil && c.PreemptionPolicy != nil && f.Need(at, string(*c.PreemptionPolicy)) {
			check.Listed(&f, at, *c.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
		}
		if old != nil {
			if c.Value != old.Value {
				f.Forbidden(field.NewPath("value"), "may not be changed in an update.")
			}
			f.Same(field.NewPath("preemptionPolicy"), c.PreemptionPolicy, old.PreemptionPolicy)
		}
		return f.List()
	})},
	Docs: map[string]string{
		"Value":            schedulingv1.PriorityClass{}.SwaggerDoc()["value"],
		"Global-Default":   schedulingv1.PriorityClass{}.SwaggerDoc()["globalDefault"],
		"PreemptionPolicy": schedulingv1.PriorityClass{}.SwaggerDoc()["preemptionPolicy"],
	},
	Columns: []Column[schedulingv1.PriorityClass]{
		number("Value", func(c *schedulingv1.PriorityClass) int32 { return c.Value }),
		boolean("Global-Default", func(c *schedulingv1.PriorityClass) bool { return c.GlobalDefault }),
		ageColumn[schedulingv1.PriorityClass](),
		text("PreemptionPolicy", func(c *schedulingv1.PriorityClass) string { return string(valueOr(c.PreemptionPolicy, "")) }),
	},
}

var runtimeClasses = Resource[nodev1.RuntimeClass]{
	Group: "node.k8s.io", Version: "v1", Kind: "RuntimeClass", Plural: "runtimeclasses", WholeMeta: true, AnyFinalizer: true, Prefix: "runtimeclasses", Scope: Cluster,
	NoGeneration: true, CreateOnUpdate: true, NeedsVersion: true, List: listOf[nodev1.RuntimeClassList],
	Main: plainPart(func(c, old *nodev1.RuntimeClass) field.ErrorList {
		var f check.Faults
		f.NeedName(field.NewPath("handler"), c.Handler, validation.IsDNS1123Label)
		if c.Overhead != nil {
			f.Add(podrules.ValidateResources(&corev1.ResourceRequirements{Limits: c.Overhead.PodFixed}, nil, field.NewPath("overhead")))
		}
		if s := c.Scheduling; s != nil {
			p := field.NewPath("scheduling")
			f.Labels(p.Child("nodeSelector"), s.NodeSelector)
			f.Add(podrules.ValidateTolerations(s.Tolerations, p.Child("tolerations")))
			seen := check.Seen[corev1.Toleration]{}
			for i, t := range s.Tolerations {
				key := t
				key.TolerationSeconds = nil
				if seen.Again(key) {
					f.Duplicate(p.Child("tolerations").Index(i), check.Shown(t))
				}
			}
		}
		if old != nil {
			f.Same(field.NewPath("handler"), c.Handler, old.Handler)
		}
		return f.List()
	}),
	Docs: map[string]string{
		"Handler": nodev1.RuntimeClass{}.SwaggerDoc()["handler"],
	},
	Columns: []Column[nodev1.RuntimeClass]{
		text("Handler", func(c *nodev1.RuntimeClass) string { return c.Handler }),
		ageColumn[nodev1.RuntimeClass](),
	},
}
