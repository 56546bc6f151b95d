package volumes

import "github.com/prometheus/client_golang/prometheus"

var totalDesc = prometheus.NewDesc("volume_manager_total_volumes",
	"Volumes of pods by plugin: those that pods want, and those that are ready.", []string{"plugin_name", "state"}, nil)

// Describe is prometheus.Collector's.
func (m *Manager) Describe(ch chan<- *prometheus.Desc) { ch <- totalDesc }

// Collect counts the volumes that there are now.
func (m *Manager) Collect(ch chan<- prometheus.Metric) {
	have, want := map[string]int{}, map[string]int{}
	m.mu.Lock()
	for _, s := range m.pods {
		for _, plugin := range s.have {
			have[plugin]++
		}
		for _, plugin := range s.want {
			want[plugin]++
		}
	}
	m.mu.Unlock()
	for state, counts := range map[string]map[string]int{"actual_state_of_world": have, "desired_state_of_world": want} {
		for plugin, n := range counts {
			ch <- prometheus.MustNewConstMetric(totalDesc, prometheus.GaugeValue, float64(n), plugin, state)
		}
	}
}
