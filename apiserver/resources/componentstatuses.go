package resources

import (
	corev1 "k8s.io/api/core/v1"
)

// Component statuses are not stored: rest asks its Observed functions whenever somebody reads them.
var componentStatuses = Resource[corev1.ComponentStatus]{
	Group: "", Version: "v1", Kind: "ComponentStatus", Plural: "componentstatuses", Short: []string{"cs"}, Scope: Cluster,
	Verbs: []string{"get", "list"}, List: listOf[corev1.ComponentStatusList], NoGeneration: true,
	Docs: map[string]string{
		"Status":  "Whether the component is healthy.",
		"Message": "What it says of itself.",
		"Error":   "Why it could not be asked.",
	},
	Columns: []Column[corev1.ComponentStatus]{
		text("Status", func(c *corev1.ComponentStatus) string {
			for _, x := range c.Conditions {
				if x.Type == corev1.ComponentHealthy {
					if x.Status == corev1.ConditionTrue {
						return "Healthy"
					}
					return "Unhealthy"
				}
			}
			return "Unknown"
		}),
		text("Message", func(c *corev1.ComponentStatus) string { return firstCondition(c).Message }),
		text("Error", func(c *corev1.ComponentStatus) string { return firstCondition(c).Error }),
	},
}

func firstCondition(c *corev1.ComponentStatus) corev1.ComponentCondition {
	if len(c.Conditions) == 0 {
		return corev1.ComponentCondition{}
	}
	return c.Conditions[0]
}
